//! What the benches need of the harness of the end-to-end tests, which is made for those and has more.

#[path = "../../tests/it/harness/archive.rs"]
pub mod archive;
#[path = "../../tests/it/harness/client.rs"]
pub mod client;
#[path = "../../tests/it/harness/perennial.rs"]
pub mod perennial;
#[path = "../../tests/it/harness/port.rs"]
pub mod port;
#[path = "../../tests/it/harness/process.rs"]
pub mod process;
#[path = "../../tests/it/harness/random.rs"]
pub mod random;
#[cfg(feature = "s3")]
#[path = "../../tests/it/harness/s3.rs"]
pub mod s3;
#[path = "../../tests/it/harness/servers.rs"]
pub mod servers;
#[path = "../../tests/it/harness/until.rs"]
pub mod until;

pub use archive::Archive;
pub use client::{Client, Value};
pub use perennial::{Perennial, run_cli, run_cli_when_it_can, run_cli_with};
pub use port::Port;
pub use servers::{Kind, REDIS_7_0, Server};
pub use until::{DEADLINE, until};
