//! The SDK's client for an address: who we are, which region, how long a request may take and how often it is tried.
//!
//! There is one policy for failures. A request is tried [`TRIES_MAX`] times here, within seconds, which carries it over
//! a lost packet or a busy server; then the error goes to the caller. Whoever must not give up (the uploader, the loop
//! of `run`) tries again for ever, with waits of its own; the commands that end say what happened.

use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};

use super::address::{Checksums, S3Address};

/// How often a request is tried before its error is told.
pub(super) const TRIES_MAX: u32 = 3;
/// The first wait between two tries; the SDK takes a random part of it and doubles it.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Until a connection is there.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// One try, the bytes it carries aside.
const TRY_MAX: Duration = Duration::from_secs(20);
/// The slowest store that is waited for, in bytes a second.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// The region that servers take that have none.
const REGION_OF_OTHER_SERVERS: &str = "us-east-1";

/// How long one try of a request that carries `bytes` may take.
pub(super) const fn try_max(bytes: u64) -> Duration {
    TRY_MAX.saturating_add(Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND))
}

/// How long a request that carries `bytes` may take with all its tries.
pub(super) const fn request_max(bytes: u64) -> Duration {
    try_max(bytes).saturating_mul(2)
}

/// The limits of a request that carries `bytes`, for that request alone.
pub(super) fn limits(bytes: u64) -> Builder {
    Builder::new().timeout_config(timeouts(bytes))
}

fn timeouts(bytes: u64) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_MAX)
        .operation_attempt_timeout(try_max(bytes))
        .operation_timeout(request_max(bytes))
        .build()
}

/// Makes the client; asks the environment, the configuration files and, for the region alone, the machine's metadata
/// service. Credentials are looked for with the first request, and again when they expire.
///
/// # Errors
/// Where no region is known.
pub(super) async fn connect(
    address: &S3Address,
    credentials: Option<Credentials>,
) -> Result<Client, String> {
    let retries = RetryConfig::standard()
        .with_max_attempts(TRIES_MAX)
        .with_initial_backoff(RETRY_FIRST)
        .with_max_backoff(RETRY_MAX);
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(regions(address))
        .retry_config(retries)
        .timeout_config(timeouts(0));
    if let Some(profile) = &address.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    if address.anonymous {
        loader = loader.no_credentials();
    }
    let shared = loader.load().await;
    if shared.region().is_none() {
        return Err(
            "no region is known: write ?region=eu-west-1 behind the address, or set AWS_REGION"
                .to_owned(),
        );
    }
    let (requests, responses) = match address.checksums {
        Checksums::WhenRequired => (
            RequestChecksumCalculation::WhenRequired,
            ResponseChecksumValidation::WhenRequired,
        ),
        Checksums::WhenSupported => (
            RequestChecksumCalculation::WhenSupported,
            ResponseChecksumValidation::WhenSupported,
        ),
    };
    let mut config = Builder::from(&shared)
        .force_path_style(address.path_style)
        .request_checksum_calculation(requests)
        .response_checksum_validation(responses);
    if let Some(endpoint) = &address.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// Where the region comes from: the address, the environment, the profile, the machine.
fn regions(address: &S3Address) -> RegionProviderChain {
    if let Some(region) = &address.region {
        return RegionProviderChain::first_try(Region::new(region.clone()));
    }
    let mut profile = ProfileFileRegionProvider::builder();
    if let Some(name) = &address.profile {
        profile = profile.profile_name(name);
    }
    let said = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(profile.build());
    if address.endpoint.is_some() {
        // Another server: the machine's metadata service, if there is one, knows nothing of it.
        said.or_else(Region::from_static(REGION_OF_OTHER_SERVERS))
    } else {
        said.or_default_provider()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_requests_may_take_longer() {
        assert_eq!(try_max(0), TRY_MAX);
        assert_eq!(try_max(8 << 20), TRY_MAX + Duration::from_secs(128));
        assert!(request_max(0) > try_max(0));
    }
}
