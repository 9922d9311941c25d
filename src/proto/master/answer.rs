//! What each request of a handshake is answered, without state of the link.

use bytes::Bytes;

use crate::position::Offset;

use super::{Auth, PsyncOffer, PsyncRequest, Readiness, RefusedRequest};

/// To PING and PSYNC while it is undecided. Real replicas take any `-LOADING` for "try again".
pub(super) const UNDECIDED: &str =
    "-LOADING Perennial is deciding whether to seed this server, try again\r\n";

/// To everything that no replica asks: by this text we know each other.
pub const UNKNOWN_COMMAND: &str = "unknown command, this is Perennial: it serves replicas only";

const OK: &str = "+OK\r\n";
const NOAUTH: &str = "-NOAUTH Authentication required.\r\n";
const WRONGPASS: &str = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";

/// The longest address or version kept of what a replica announces, bytes.
const ANNOUNCED_BYTES_MAX: usize = 255;

/// What a replica has said so far.
#[derive(Debug, Default)]
pub(super) struct Announced {
    authenticated: Authenticated,
    listening_port: Option<u16>,
    ip_address: Option<String>,
    eof: bool,
    psync2: bool,
    version: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Authenticated {
    #[default]
    NotYet,
    Yes,
    /// One wrong password is all a connection gets.
    Refused,
}

/// What to do about a request.
#[derive(Debug)]
pub(super) enum Answer {
    Nothing,
    Reply(Bytes),
    Refused(Bytes, RefusedRequest),
    Offer(PsyncOffer),
}

impl Answer {
    fn fixed(reply: &'static str) -> Self {
        Self::Reply(Bytes::from_static(reply.as_bytes()))
    }
}

/// `-ERR` and `message` on one line.
pub(super) fn error(message: &str) -> Bytes {
    let message = message.replace(['\r', '\n'], " ");
    Bytes::from(format!("-ERR {message}\r\n"))
}

/// The offsets of `REPLCONF ACK <offset> [FACK <offset>]`.
pub(super) fn acknowledgement(arguments: &[Bytes]) -> Option<(Offset, Option<Offset>)> {
    let (name, options) = arguments.split_first()?;
    if !name.eq_ignore_ascii_case(b"replconf") || options.len() % 2 != 0 {
        return None;
    }
    let mut ack = None;
    let mut fack = None;
    for pair in options.chunks_exact(2) {
        if pair[0].eq_ignore_ascii_case(b"ack") {
            ack = Some(Offset::new(number(&pair[1])?));
        } else if pair[0].eq_ignore_ascii_case(b"fack") {
            fack = Some(Offset::new(number(&pair[1])?));
        }
    }
    Some((ack?, fack))
}

impl Announced {
    pub(super) fn knows_psync2(&self) -> bool {
        self.psync2
    }

    /// What to do about a request, name first.
    pub(super) fn answer(
        &mut self,
        auth: Option<&Auth>,
        readiness: &Readiness,
        arguments: &[Bytes],
    ) -> Answer {
        let Some((name, rest)) = arguments.split_first() else {
            return Answer::Nothing;
        };
        let is = |command: &[u8]| name.eq_ignore_ascii_case(command);
        let psync = is(b"psync");
        if let Readiness::Refusing(text) = readiness {
            return match psync {
                true => Answer::Refused(error(text), RefusedRequest::Refusing),
                false => Answer::Reply(error(text)),
            };
        }
        if let (true, [_, _, failover]) = (psync, rest)
            && failover.eq_ignore_ascii_case(b"failover")
        {
            let text = "Perennial cannot become a master, choose another replica";
            return Answer::Refused(error(text), RefusedRequest::Failover);
        }
        if is(b"auth") && self.authenticated != Authenticated::Refused {
            return self.auth(auth, rest);
        }
        if auth.is_some() && self.authenticated != Authenticated::Yes {
            // A replica without masterauth goes on to its PSYNC, whatever it is answered before.
            return match psync && self.authenticated == Authenticated::NotYet {
                true => Answer::Refused(
                    Bytes::from_static(NOAUTH.as_bytes()),
                    RefusedRequest::NoPassword,
                ),
                false => Answer::fixed(NOAUTH),
            };
        }
        if *readiness == Readiness::Undecided {
            let undecided = Bytes::from_static(UNDECIDED.as_bytes());
            if psync {
                return Answer::Refused(undecided, RefusedRequest::Undecided);
            }
            if is(b"ping") {
                return Answer::Reply(undecided);
            }
        }
        if psync {
            self.psync(rest)
        } else if is(b"ping") {
            Answer::fixed("+PONG\r\n")
        } else if is(b"replconf") {
            self.replconf(rest)
        } else if is(b"sync") {
            let text = "SYNC is not supported, this master speaks PSYNC only";
            Answer::Refused(error(text), RefusedRequest::Sync)
        } else {
            Answer::Reply(error(UNKNOWN_COMMAND))
        }
    }

    fn auth(&mut self, auth: Option<&Auth>, said: &[Bytes]) -> Answer {
        let (user, password) = match said {
            [password] => (None, password),
            [user, password] => (Some(user), password),
            _ => return Answer::Reply(error("wrong number of arguments for 'auth' command")),
        };
        // Servers of one set often share a masterauth; here it is not needed.
        let Some(auth) = auth else {
            return Answer::fixed(OK);
        };
        let user = user.map_or(b"default".as_slice(), |user| user);
        let right_user = match &auth.user {
            Some(expected) => equal(user, expected.as_bytes()),
            // A server whose own set has users says its masteruser here too: the password is the secret.
            None => true,
        };
        let right_password = equal(password, auth.password.as_bytes());
        if right_user & right_password {
            self.authenticated = Authenticated::Yes;
            return Answer::fixed(OK);
        }
        self.authenticated = Authenticated::Refused;
        Answer::Refused(
            Bytes::from_static(WRONGPASS.as_bytes()),
            RefusedRequest::WrongPassword,
        )
    }

    /// Unknown options are answered `+OK`, as real masters answer unknown capabilities.
    fn replconf(&mut self, options: &[Bytes]) -> Answer {
        for pair in options.chunks(2) {
            let [option, value] = pair else {
                return Answer::Reply(error("syntax error"));
            };
            let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
            if is(b"ack") || is(b"fack") {
                // Never answered (`protocol-facts` 1.2); before PSYNC it means nothing.
                return Answer::Nothing;
            } else if is(b"listening-port") {
                self.listening_port = number(value);
            } else if is(b"ip-address") {
                self.ip_address = text(value);
            } else if is(b"version") {
                self.version = text(value);
            } else if is(b"capa") {
                self.eof |= value.eq_ignore_ascii_case(b"eof");
                self.psync2 |= value.eq_ignore_ascii_case(b"psync2");
            }
        }
        Answer::fixed(OK)
    }

    fn psync(&mut self, arguments: &[Bytes]) -> Answer {
        let [id, next] = arguments else {
            return bad_psync();
        };
        let request = if id.as_ref() == b"?" {
            PsyncRequest::Full
        } else {
            let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) else {
                return bad_psync();
            };
            match number::<i64>(next).map(u64::try_from) {
                Some(Ok(next @ 1..)) => PsyncRequest::Continue {
                    id,
                    after: Offset::new(next).previous(),
                },
                // A real master answers these with a full sync (`protocol-facts` 1.3).
                Some(_) => PsyncRequest::Full,
                None => return bad_psync(),
            }
        };
        Answer::Offer(PsyncOffer {
            request,
            listening_port: self.listening_port,
            ip_address: self.ip_address.clone(),
            eof: self.eof,
            psync2: self.psync2,
            version: self.version.clone(),
        })
    }
}

fn bad_psync() -> Answer {
    let text = "PSYNC wants a replication id and an offset";
    Answer::Refused(error(text), RefusedRequest::BadPsync)
}

fn number<N: std::str::FromStr>(argument: &[u8]) -> Option<N> {
    std::str::from_utf8(argument).ok()?.parse().ok()
}

fn text(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    (text.len() <= ANNOUNCED_BYTES_MAX).then(|| text.to_owned())
}

/// Compares without stopping at the first difference, so that the time it takes tells a guesser little.
fn equal(said: &[u8], expected: &[u8]) -> bool {
    let longest = said.len().max(expected.len());
    let different = (0..longest).fold(said.len() ^ expected.len(), |different, at| {
        let said = said.get(at).copied().unwrap_or(0);
        let expected = expected.get(at).copied().unwrap_or(0);
        different | usize::from(said ^ expected)
    });
    different == 0
}
