//! Which Sentinels are asked, and for whom.

use super::{BadSetting, TlsSettings, bad, encrypt};
use crate::server::net::{Address, Credentials, DEFAULT_PORT, Endpoint};

/// Who names the server, as typed.
#[derive(Clone, Debug, Default)]
pub struct SentinelSettings {
    /// `--sentinel`
    pub addresses: Vec<String>,
    /// `--sentinel-master`
    pub master: Option<String>,
    /// The content of `--sentinel-password-file`
    pub password: Option<String>,
}

/// Who is asked which server is the master.
#[derive(Clone, Debug)]
pub struct SentinelOptions {
    /// The Sentinels.
    pub addresses: Vec<Address>,
    /// The master's name.
    pub master: String,
}

impl SentinelSettings {
    /// The Sentinels, where any were given.
    pub(super) fn check(
        self,
        redis: &Address,
        tls: &TlsSettings,
    ) -> Result<Option<SentinelOptions>, BadSetting> {
        let master = match (self.addresses.is_empty(), self.master) {
            (true, None) => return Ok(None),
            (true, Some(_)) => {
                return Err(bad(
                    "sentinel",
                    "is missing: where the Sentinels of --sentinel-master are, HOST:PORT[,HOST:PORT]",
                ));
            }
            (false, None) => {
                return Err(bad(
                    "sentinel-master",
                    "is missing: the name by which the Sentinels know the master",
                ));
            }
            (false, Some(master)) => master,
        };
        if matches!(redis.endpoint, Endpoint::Unix(_)) {
            return Err(bad(
                "redis",
                "Sentinels name the server: of --redis only the scheme, the user and the password count, and a socket \
                 file has none",
            ));
        }
        let addresses = self
            .addresses
            .iter()
            .map(|text| sentinel(text, self.password.as_ref(), tls))
            .collect::<Result<_, _>>()?;
        Ok(Some(SentinelOptions { addresses, master }))
    }
}

fn sentinel(
    text: &str,
    password: Option<&String>,
    settings: &TlsSettings,
) -> Result<Address, BadSetting> {
    let url = match text.contains("://") {
        true => text.to_owned(),
        false => format!("redis://{text}"),
    };
    let mut address: Address = url.parse().map_err(|error| bad("sentinel", error))?;
    let port = match &address.endpoint {
        Endpoint::Tcp { port, .. } | Endpoint::Tls { port, .. } => *port,
        Endpoint::Unix(_) => return Err(bad("sentinel", "write HOST:PORT")),
    };
    // A URL without a port means a server's.
    if port == DEFAULT_PORT && !text.ends_with(&format!(":{DEFAULT_PORT}")) {
        return Err(bad(
            "sentinel",
            format!("{address} has no port of a Sentinel: write HOST:26379, its own by default"),
        ));
    }
    if let Some(password) = password {
        let user = address.credentials.take().and_then(|before| before.user);
        address.credentials = Some(Credentials {
            user,
            password: password.clone(),
        });
    }
    if matches!(address.endpoint, Endpoint::Tls { .. }) {
        encrypt(&mut address, settings)?;
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(addresses: &[&str], master: Option<&str>) -> Result<Vec<String>, String> {
        let settings = SentinelSettings {
            addresses: addresses.iter().map(|&text| text.to_owned()).collect(),
            master: master.map(str::to_owned),
            password: None,
        };
        let redis = "redis://localhost".parse().unwrap();
        let options = settings.check(&redis, &TlsSettings::default());
        let shown = |options: SentinelOptions| {
            let addresses = options.addresses.iter();
            addresses.map(ToString::to_string).collect()
        };
        options
            .map(|options| options.map(shown).unwrap_or_default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn they_come_with_a_port_and_a_name() {
        assert_eq!(check(&[], None), Ok(Vec::new()));
        let two = check(&["a:26379", "redis://user:secret@[::1]:5000"], Some("m")).unwrap();
        assert_eq!(two, ["redis://a:26379", "redis://[::1]:5000"]);
        let error = |addresses: &[&str], master| check(addresses, master).unwrap_err();
        assert!(error(&["a:26379"], None).starts_with("--sentinel-master: is missing"));
        assert!(error(&[], Some("m")).starts_with("--sentinel: is missing"));
        assert!(error(&["a"], Some("m")).contains("write HOST:26379"));
        assert!(error(&["unix:///tmp/s"], Some("m")).contains("write HOST:PORT"));
        assert!(check(&["a:6379"], Some("m")).is_ok());
    }
}
