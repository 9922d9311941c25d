//! When snapshots behind the first one are taken, and from where.

use std::sync::Arc;

use super::{BadSetting, TlsSettings, bad, bytes, duration, duration_or, encrypt, millis};
use crate::follow::schedule::LOG_BYTES_MIN;
use crate::follow::{ScheduleOptions, SnapshotSource};
use crate::replay::Replayer;
use crate::server::net::{Address, Endpoint};
use crate::server::scratch::ScratchPlace;

/// What `--snapshot-from` says for the archive itself.
const FROM_ARCHIVE: &str = "archive";
/// The largest `--snapshot-log-ratio`.
const LOG_RATIO_MAX: f64 = 1_000_000.0;

/// What was told about snapshots behind the first one, as typed.
#[derive(Clone, Debug)]
pub struct SnapshotSettings {
    /// `--snapshot-interval`
    pub interval: String,
    /// `--snapshot-min-interval`
    pub min_interval: String,
    /// `--snapshot-log-ratio`
    pub log_ratio: String,
    /// `--snapshot-log-bytes`
    pub log_bytes: String,
    /// `--snapshot-from`
    pub from: Option<String>,
    /// `--scratch`
    pub scratch: Option<String>,
}

impl Default for SnapshotSettings {
    fn default() -> Self {
        Self {
            interval: "24h".into(),
            min_interval: "1h".into(),
            log_ratio: "1.0".into(),
            log_bytes: format!("{LOG_BYTES_MIN}B"),
            from: None,
            scratch: None,
        }
    }
}

impl SnapshotSettings {
    pub(super) fn schedule(&self) -> Result<ScheduleOptions, BadSetting> {
        let min_interval = duration("snapshot-min-interval", &self.min_interval)?;
        let interval = match self.interval.as_str() {
            "none" => None,
            text => Some(duration_or("snapshot-interval", text, ", or none")?),
        };
        if interval.is_some_and(|interval| interval < min_interval) {
            return Err(bad(
                "snapshot-interval",
                "shorter than --snapshot-min-interval: lower that one too, or write none for no interval",
            ));
        }
        Ok(ScheduleOptions {
            interval_millis: interval.map(millis),
            min_interval_millis: millis(min_interval),
            log_thousandths: log_ratio(&self.log_ratio)?,
            log_bytes_min: bytes("snapshot-log-bytes", &self.log_bytes, 1)?,
        })
    }

    pub(super) fn source(&self, tls: &TlsSettings) -> Result<SnapshotSource, BadSetting> {
        let Some(text) = &self.from else {
            return Ok(SnapshotSource::Followed);
        };
        if text == FROM_ARCHIVE {
            return Ok(SnapshotSource::Archive(Arc::new(self.replayer()?)));
        }
        let mut address: Address = text.parse().map_err(|error| bad("snapshot-from", error))?;
        if matches!(address.endpoint, Endpoint::Tls { .. }) {
            encrypt(&mut address, tls)?;
        }
        Ok(SnapshotSource::Replica(address))
    }

    fn replayer(&self) -> Result<Replayer, BadSetting> {
        let Some(text) = &self.scratch else {
            return Err(bad(
                "snapshot-from",
                "archive needs --scratch with the path of a redis-server or valkey-server, of the version that is followed: \
                 the archive is replayed into it",
            ));
        };
        match text.parse() {
            Ok(ScratchPlace::Program(program)) => Ok(Replayer::new(program)),
            // It would stay filled, and somebody's replica, if we died in the middle.
            Ok(ScratchPlace::Server(_)) => Err(bad(
                "scratch",
                "--snapshot-from archive needs the path of a program: a server that is lent cannot be used again and again",
            )),
            Err(error) => Err(bad("scratch", error)),
        }
    }
}

/// Thousandths; nothing for `none`.
fn log_ratio(text: &str) -> Result<Option<u64>, BadSetting> {
    if text == "none" {
        return Ok(None);
    }
    let ratio: f64 = text.parse().unwrap_or(f64::NAN);
    if !(0.001..=LOG_RATIO_MAX).contains(&ratio) {
        return Err(bad(
            "snapshot-log-ratio",
            format!("{text:?} is not a number like 1.0 from 0.001 on; none is never"),
        ));
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and a thousand million"
    )]
    let thousandths = (ratio * 1000.0).round() as u64;
    Ok(Some(thousandths))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(change: impl FnOnce(&mut SnapshotSettings)) -> Result<ScheduleOptions, String> {
        let mut settings = SnapshotSettings::default();
        change(&mut settings);
        settings.schedule().map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let hour = 3_600_000;
        assert_eq!(
            schedule(|_| {}),
            Ok(ScheduleOptions {
                interval_millis: Some(24 * hour),
                min_interval_millis: hour,
                log_thousandths: Some(1000),
                log_bytes_min: 256 << 20,
            })
        );
    }

    #[test]
    fn what_is_wrong_names_the_flag() {
        let wrong = |change: fn(&mut SnapshotSettings)| schedule(change).unwrap_err();
        assert!(wrong(|s| s.interval = "daily".into()).starts_with("--snapshot-interval: "));
        assert!(wrong(|s| s.interval = "30m".into()).contains("--snapshot-min-interval"));
        for ratio in ["0", "-1", "much", "NaN", "inf"] {
            let settings = SnapshotSettings {
                log_ratio: ratio.into(),
                ..Default::default()
            };
            let error = settings.schedule().unwrap_err().to_string();
            assert!(error.starts_with("--snapshot-log-ratio: "), "{error}");
        }
        let none = schedule(|s| {
            s.interval = "none".into();
            s.log_ratio = "none".into();
        });
        let none = none.unwrap();
        assert_eq!((none.interval_millis, none.log_thousandths), (None, None));
        let from = SnapshotSettings {
            from: Some("replica:6379".into()),
            ..Default::default()
        };
        let error = from.source(&TlsSettings::default()).unwrap_err();
        assert!(error.to_string().starts_with("--snapshot-from: "));
    }

    #[test]
    fn the_archive_is_replayed_by_a_program_only() {
        let source = |scratch: Option<&str>| {
            let settings = SnapshotSettings {
                from: Some("archive".into()),
                scratch: scratch.map(str::to_owned),
                ..Default::default()
            };
            let source = settings.source(&TlsSettings::default());
            source.map_err(|error| error.to_string())
        };
        let program = source(Some("/usr/bin/redis-server"));
        assert!(matches!(program, Ok(SnapshotSource::Archive(_))));
        let without = source(None).unwrap_err();
        assert!(without.contains("archive needs --scratch"), "{without}");
        let lent = source(Some("redis://127.0.0.1:7000")).unwrap_err();
        assert!(lent.starts_with("--scratch: "), "{lent}");
    }
}
