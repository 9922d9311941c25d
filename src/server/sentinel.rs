//! Sentinels: which server they call the master. Several are asked, because one that was cut off names the old one for ever.

use std::fmt;
use std::time::Duration;

use redis_protocol::resp2::types::{BytesFrame, Resp2Frame};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control::{Control, ControlError};
use super::net::{Address, Endpoint};

/// How often each Sentinel is asked.
pub const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long one may take to answer, its connection included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The server that Sentinels call the master.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Host name or address, as the Sentinels know it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Grows with each failover (`config-epoch`).
    pub epoch: u64,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Named {
    /// Where it is reached: by the scheme, the certificates and the password of `like`.
    #[must_use]
    pub fn address(&self, like: &Address) -> Address {
        let endpoint = match &like.endpoint {
            Endpoint::Tls { tls, .. } => Endpoint::Tls {
                host: self.host.clone(),
                port: self.port,
                tls: tls.clone(),
            },
            Endpoint::Tcp { .. } | Endpoint::Unix(_) => Endpoint::Tcp {
                host: self.host.clone(),
                port: self.port,
            },
        };
        Address {
            endpoint,
            credentials: like.credentials.clone(),
        }
    }

    /// Whether it is the same server, whatever has happened since.
    pub fn is_at(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }
}

/// What Sentinels say at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// None has answered yet, or none knows the master by this name: why.
    Nothing(String),
    /// This one; it stays where afterwards none answers.
    Named(Named),
}

/// One of several Sentinels.
#[derive(Debug)]
struct Sentinel {
    address: Address,
    connection: Option<Control>,
}

/// Why a Sentinel named nobody.
#[derive(Debug, thiserror::Error)]
enum Unnamed {
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("no answer from {address} within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent { address: String },
    #[error("{0} gave no usable answer to SENTINEL MASTER: is it a Sentinel?")]
    Unusable(String),
}

impl Sentinel {
    async fn ask(&mut self, name: &str) -> Result<Named, Unnamed> {
        let asked = timeout(ANSWER_TIMEOUT, self.exchange(name)).await;
        let named = asked.unwrap_or_else(|_| {
            let address = self.address.to_string();
            Err(Unnamed::Silent { address })
        });
        if named.is_err() {
            self.connection = None;
        }
        named
    }

    async fn exchange(&mut self, name: &str) -> Result<Named, Unnamed> {
        let mut control = match self.connection.take() {
            Some(control) => control,
            None => Control::connect(&self.address).await?,
        };
        // In the middle of a failover the first still has the old address, with the new epoch, until all replicas were told;
        // the second has the one that was promoted. This order, so that what changes in between is at worst an old epoch.
        let master = control
            .command(&[b"SENTINEL", b"MASTER", name.as_bytes()])
            .await?;
        let address = control
            .command(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.as_bytes()])
            .await?;
        self.connection = Some(control);
        named(&master, &address).ok_or_else(|| Unnamed::Unusable(self.address.to_string()))
    }
}

/// Reads the names and values of `SENTINEL MASTER`, and the pair of `GET-MASTER-ADDR-BY-NAME`.
fn named(master: &BytesFrame, address: &BytesFrame) -> Option<Named> {
    let (BytesFrame::Array(fields), BytesFrame::Array(address)) = (master, address) else {
        return None;
    };
    let [host, port] = address.as_slice() else {
        return None;
    };
    let (pairs, _) = fields.as_chunks::<2>();
    let [_, epoch] = pairs
        .iter()
        .find(|[name, _]| name.as_str() == Some("config-epoch"))?;
    Some(Named {
        host: host.as_str().filter(|host| !host.is_empty())?.to_owned(),
        port: port.as_str()?.parse().ok().filter(|port| *port != 0)?,
        epoch: epoch.as_str()?.parse().ok()?,
    })
}

/// Of what `asked` Sentinels answered, what is believed: the newest epoch. An older one than `known` is that of a
/// Sentinel that was cut off, unless all of them say so: then they were told to begin anew.
fn choose(known: Option<&Named>, answers: &[Named], asked: usize) -> Option<Named> {
    let newest = answers.iter().max_by_key(|named| named.epoch)?;
    let Some(known) = known else {
        return Some(newest.clone());
    };
    if newest.epoch < known.epoch && answers.len() < asked {
        return Some(known.clone());
    }
    // Two of one epoch: whoever was believed stays.
    let same = |named: &&Named| named.epoch == newest.epoch && named.is_at(known);
    Some(answers.iter().find(same).unwrap_or(newest).clone())
}

/// Asks Sentinels all the time, until this is dropped.
#[derive(Debug)]
pub struct Sentinels {
    word: watch::Receiver<Word>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sentinels {
    /// Begins to ask for the master of this name.
    pub fn ask(addresses: Vec<Address>, name: String) -> Self {
        let (sender, word) = watch::channel(Word::Nothing("no Sentinel has answered yet".into()));
        let sentinels = addresses
            .into_iter()
            .map(|address| Sentinel {
                address,
                connection: None,
            })
            .collect();
        let task = tokio::spawn(keep_asking(sentinels, name, sender));
        Self { word, task }
    }

    /// What they say, now and later.
    pub fn word(&self) -> watch::Receiver<Word> {
        self.word.clone()
    }
}

async fn keep_asking(mut sentinels: Vec<Sentinel>, name: String, word: watch::Sender<Word>) {
    let (asked, mut silent) = (sentinels.len(), false);
    loop {
        let round = Round::of(sentinels, &name).await;
        sentinels = round.sentinels;
        let known = match &*word.borrow() {
            Word::Named(named) => Some(named.clone()),
            Word::Nothing(_) => None,
        };
        let why = round.failures.join("; ");
        if round.answers.is_empty() && !silent {
            tracing::warn!("no Sentinel names the master {name:?}: {why}");
        } else if silent && !round.answers.is_empty() {
            tracing::info!("Sentinels name the master {name:?} again");
        }
        silent = round.answers.is_empty();
        let chosen = choose(known.as_ref(), &round.answers, asked).or(known);
        let said = chosen.map_or(Word::Nothing(why), Word::Named);
        word.send_if_modified(|before| {
            let changed = *before != said;
            *before = said;
            changed
        });
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Each was asked once.
struct Round {
    sentinels: Vec<Sentinel>,
    answers: Vec<Named>,
    failures: Vec<String>,
}

impl Round {
    async fn of(sentinels: Vec<Sentinel>, name: &str) -> Self {
        let mut asked = JoinSet::new();
        for mut sentinel in sentinels {
            let name = name.to_owned();
            asked.spawn(async move { (sentinel.ask(&name).await, sentinel) });
        }
        let mut round = Self {
            sentinels: Vec::new(),
            answers: Vec::new(),
            failures: Vec::new(),
        };
        for (outcome, sentinel) in asked.join_all().await {
            round.sentinels.push(sentinel);
            match outcome {
                Ok(named) => round.answers.push(named),
                Err(error) => round.failures.push(error.to_string()),
            }
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16, epoch: u64) -> Named {
        Named {
            host: "10.0.0.1".into(),
            port,
            epoch,
        }
    }

    fn chosen(known: Option<Named>, answers: &[Named], asked: usize) -> Option<(u16, u64)> {
        choose(known.as_ref(), answers, asked).map(|named| (named.port, named.epoch))
    }

    #[test]
    fn the_newest_epoch_is_believed() {
        let answers = [at(1, 4), at(2, 5), at(1, 4)];
        assert_eq!(chosen(None, &answers, 3), Some((2, 5)));
        assert_eq!(chosen(Some(at(1, 4)), &answers, 3), Some((2, 5)));
        assert_eq!(chosen(None, &[], 3), None);
        assert_eq!(chosen(Some(at(1, 4)), &[], 3), None);
    }

    #[test]
    fn who_was_cut_off_is_not_believed() {
        assert_eq!(chosen(Some(at(2, 5)), &[at(1, 4)], 3), Some((2, 5)));
        assert_eq!(
            chosen(Some(at(2, 5)), &[at(1, 4), at(1, 4)], 3),
            Some((2, 5))
        );
    }

    #[test]
    fn all_of_them_may_begin_anew() {
        assert_eq!(
            chosen(Some(at(2, 5)), &[at(1, 0), at(1, 0)], 2),
            Some((1, 0))
        );
        assert_eq!(
            chosen(Some(at(2, 5)), &[at(2, 0), at(2, 0)], 2),
            Some((2, 0))
        );
    }

    #[test]
    fn of_two_of_one_epoch_the_one_that_was_believed_stays() {
        let answers = [at(1, 5), at(2, 5)];
        assert_eq!(chosen(Some(at(1, 5)), &answers, 2), Some((1, 5)));
        assert_eq!(chosen(Some(at(2, 5)), &answers, 2), Some((2, 5)));
        // Moved by hand: SENTINEL SET leaves the epoch as it is.
        assert_eq!(chosen(Some(at(1, 5)), &[at(2, 5)], 1), Some((2, 5)));
    }

    #[test]
    fn an_answer_is_read() {
        let bulk = |text: &str| BytesFrame::BulkString(text.to_owned().into());
        let list =
            |texts: &[&str]| BytesFrame::Array(texts.iter().map(|text| bulk(text)).collect());
        let master = list(&["name", "m", "ip", "::2", "port", "1", "config-epoch", "3"]);
        // In the middle of a failover they differ.
        let found = named(&master, &list(&["::1", "6379"])).unwrap();
        assert_eq!((found.to_string().as_str(), found.epoch), ("[::1]:6379", 3));
        let unusable = [
            (list(&["name", "m"]), list(&["::1", "6379"])),
            (master.clone(), list(&["::1"])),
            (master.clone(), list(&["", "6379"])),
            (master.clone(), list(&["::1", "0"])),
            (master.clone(), BytesFrame::Null),
            (bulk("PONG"), list(&["::1", "6379"])),
        ];
        for (master, address) in unusable {
            assert_eq!(named(&master, &address), None, "{master:?} {address:?}");
        }
    }

    #[test]
    fn the_address_keeps_the_way_in() {
        let like: Address = "redis://user:secret@nowhere:1".parse().unwrap();
        let address = at(6379, 0).address(&like);
        assert_eq!(address.to_string(), "redis://10.0.0.1:6379");
        assert_eq!(address.credentials, like.credentials);
    }
}
