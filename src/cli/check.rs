//! `perennial check`: gathers facts of a server, a store and an archive, and prints what `check` finds in them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::flags::{self, CheckArguments};
use super::{Exit, findings, open_store, say, tell};
use crate::archive::plan::{Target, plan};
use crate::archive::snapshot::read_head;
use crate::check::{ArchiveFacts, Finding, ServerFacts, of_archive, of_server, of_store};
use crate::clock::Clock;
use crate::config;
use crate::decide::readable;
use crate::restore::source;
use crate::server::control::ControlError;
use crate::server::examine::{Seeding, examine};
use crate::server::net::Address;
use crate::store::catalog::{self, CatalogError, Loaded};
use crate::store::{self, Store};

/// What was found of one of the two sides.
struct Part {
    what: &'static str,
    address: String,
    findings: Vec<Finding>,
}

/// Prints the findings.
///
/// # Errors
/// Wrong usage; and, with exit code 1 and everything said before, that something is bad.
pub async fn run(arguments: CheckArguments, clock: Arc<dyn Clock>) -> anyhow::Result<()> {
    let is_json = arguments.json;
    let name = config::name(arguments.name.clone()).map_err(|error| usage(error.to_string()))?;
    let (server, seeding) = server_of(&arguments)?;
    let store = arguments.archive.as_deref().map(open_store).transpose()?;
    if server.is_none() && store.is_none() {
        return Err(usage(
            "there is nothing to look at: give --redis, --archive, or both, as `perennial run` gets them".into(),
        )
        .into());
    }
    let mut parts = Vec::new();
    let mut facts = None;
    if let Some(address) = server {
        let looked = examine(&address, seeding, &*clock).await;
        parts.push(of_looked(&address, &looked));
        facts = looked.ok();
    }
    if let Some(store) = store {
        let wanted = name.as_deref();
        parts.push(look_at_store(store, wanted, facts.as_ref(), &*clock).await);
    }
    let findings: Vec<Finding> = parts
        .iter()
        .flat_map(|part| part.findings.iter().cloned())
        .collect();
    if is_json {
        say(&serde_json::to_string_pretty(&as_json(&parts, &findings))?);
    } else {
        tell(&as_text(&parts, &findings));
    }
    Ok(findings::verdict(&findings)?)
}

fn usage(message: String) -> Exit {
    Exit { message, code: 2 }
}

/// The server, checked as `perennial run` would, and how it will be seeded.
fn server_of(arguments: &CheckArguments) -> Result<(Option<Address>, Seeding), Exit> {
    let wrong = |error: config::BadSetting| usage(error.to_string());
    let tls = flags::tls(&arguments.server, &arguments.seeding);
    let seed_tls = config::seed_tls(tls.clone()).map_err(wrong)?;
    let seeder = config::seeder(
        &arguments.seeding.seed_listen,
        arguments.seeding.seed_announce.clone(),
        arguments.seeding.password()?,
        seed_tls,
    )
    .map_err(wrong)?;
    let seeding = Seeding {
        with_password: seeder.auth.is_some(),
        with_tls: seeder.tls.is_some(),
    };
    let password = arguments.server.password()?;
    let address = arguments
        .redis
        .as_deref()
        .map(|url| config::server(url, password, &tls))
        .transpose()
        .map_err(wrong)?;
    Ok((address, seeding))
}

fn of_looked(address: &Address, looked: &Result<ServerFacts, ControlError>) -> Part {
    Part {
        what: "server",
        address: address.to_string(),
        findings: match looked {
            Ok(facts) => of_server(facts),
            Err(error) => vec![Finding::bad_as_said("server-reachable", error.to_string())],
        },
    }
}

async fn look_at_store(
    store: Arc<dyn Store>,
    wanted: Option<&str>,
    server: Option<&ServerFacts>,
    clock: &dyn Clock,
) -> Part {
    let facts = store::examine::examine(&*store, clock).await;
    let mut findings = of_store(&facts);
    if facts.listed.is_ok() {
        match catalog::load(&*store, &[]).await {
            Ok(loaded) => {
                let facts = of_loaded(&store, &loaded, wanted, server, clock).await;
                findings.extend(of_archive(Some(&facts)));
            }
            Err(CatalogError::Missing { .. }) => findings.extend(of_archive(None)),
            Err(error) => findings.push(Finding::bad_as_said("archive", error.to_string())),
        }
    }
    Part {
        what: "archive",
        address: store.address(),
        findings,
    }
}

async fn of_loaded(
    store: &Arc<dyn Store>,
    loaded: &Loaded,
    wanted: Option<&str>,
    server: Option<&ServerFacts>,
    clock: &dyn Clock,
) -> ArchiveFacts {
    let catalog = &loaded.catalog;
    let damaged: Vec<String> = loaded
        .all_damaged()
        .iter()
        .map(ToString::to_string)
        .collect();
    let problems = super::status::problems(catalog, &store.address(), clock.unix());
    let mut facts = ArchiveFacts {
        name: catalog.archive().and_then(|document| document.name.clone()),
        wanted: wanted.map(str::to_owned),
        head: catalog.head().map(|head| {
            let at = catalog.received_at(head.timeline);
            format!("{head}, received {}", super::status::time(at))
        }),
        timelines: catalog.timelines().count(),
        problems,
        damaged,
        readable: None,
    };
    if let (Some(server), Some(document)) = (server, catalog.archive())
        && let Ok(plan) = plan(catalog, Target::Latest)
    {
        let mut payload = source::payload(Arc::clone(store), document.archive, &plan);
        match payload.next().await {
            Ok(first) => {
                let head = first.and_then(|bytes| read_head(&bytes));
                facts.readable = head.map(|head| {
                    let (name, version) =
                        (server.info.server_name(), server.info.version_numbers());
                    readable(head.magic, head.version, name, version)
                });
            }
            Err(error) => facts.damaged.push(error.to_string()),
        }
    }
    facts
}

fn as_json(parts: &[Part], findings: &[Finding]) -> Value {
    let address = |what: &str| {
        let part = parts.iter().find(|part| part.what == what);
        part.map(|part| part.address.clone())
    };
    let (all, summary) = findings::json(findings);
    json!({
        "server": address("server"),
        "archive": address("archive"),
        "findings": all,
        "summary": summary,
    })
}

fn as_text(parts: &[Part], all: &[Finding]) -> String {
    let mut lines = Vec::new();
    for part in parts {
        lines.push(format!("{} {}", part.what, part.address));
        lines.extend(findings::lines(&part.findings));
        lines.push(String::new());
    }
    lines.push(findings::summary(all));
    let is_command = |finding: &Finding| {
        let change = finding.change.as_deref().unwrap_or_default();
        change.starts_with("redis-cli")
    };
    if all.iter().any(is_command) {
        lines.push(
            "A redis-cli command lasts until the server's restart: write the same into its configuration or ACL file."
                .to_owned(),
        );
    }
    lines.join("\n")
}
