//! Routes to the pods of other machines, marked with protocol number 119 so that only ours are
//! touched.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Deserialize;
use windlass_common::step::Route;

use super::{ConfigureError, Run};
use crate::host::command;

/// Routes with this protocol number are ours (`/etc/iproute2/rt_protos` leaves it free).
const PROTOCOL: &str = "119";

#[derive(Debug, Deserialize)]
struct Row {
    dst: String,
    gateway: Option<Ipv4Addr>,
}

/// What has to be done.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    remove: Vec<Route>,
    add: Vec<Route>,
}

/// Makes our routes exactly these.
pub(super) async fn converge(run: &Run, wanted: &[Route]) -> Result<(), ConfigureError> {
    let Some(change) = plan(&observe().await?, wanted) else {
        return Ok(());
    };
    let output = command::run(&["ip", "-force", "-batch", "-"], Some(&script(&change)))
        .await
        .map_err(ConfigureError::NoIp)?;
    if !output.status.success() {
        return Err(ConfigureError::Ip {
            action: "change routes",
            said: output.stderr.trim().chars().take(1000).collect(),
        });
    }
    let line =
        |sign, route: &Route| format!("{sign} route {} via {}", route.destination, route.via);
    change.remove.iter().for_each(|r| run.changed(line('-', r)));
    change.add.iter().for_each(|r| run.changed(line('+', r)));
    match plan(&observe().await?, wanted) {
        None => Ok(()),
        Some(_) => Err(ConfigureError::NotConverged {
            what: "the table of routes".to_owned(),
        }),
    }
}

/// Our routes as they are, if they are not these.
pub(super) async fn differ(wanted: &[Route]) -> Result<Option<Vec<Route>>, ConfigureError> {
    let seen = observe().await?;
    let change = plan(&seen, wanted);
    Ok(change.map(|_| seen.into_iter().collect()))
}

async fn observe() -> Result<BTreeSet<Route>, ConfigureError> {
    let argv = ["ip", "-4", "-json", "route", "show", "proto", PROTOCOL];
    let output = command::run(&argv, None)
        .await
        .map_err(ConfigureError::NoIp)?;
    let said = |said: String| ConfigureError::Ip {
        action: "show routes",
        said: said.trim().chars().take(1000).collect(),
    };
    if !output.status.success() {
        return Err(said(output.stderr));
    }
    parse(&output.stdout).map_err(|error| said(error.to_string()))
}

fn parse(json: &str) -> Result<BTreeSet<Route>, serde_json::Error> {
    if json.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows: Vec<Row> = serde_json::from_str(json)?;
    let route = |row: Row| {
        // `ip` shows a host route without its length.
        let destination = row
            .dst
            .parse::<Ipv4Net>()
            .or_else(|_| row.dst.parse::<Ipv4Addr>().map(Ipv4Net::from))
            .ok()?;
        let via = row.gateway?;
        Some(Route { destination, via })
    };
    Ok(rows.into_iter().filter_map(route).collect())
}

fn plan(seen: &BTreeSet<Route>, wanted: &[Route]) -> Option<Change> {
    let wanted: BTreeSet<Route> = wanted
        .iter()
        .map(|route| Route {
            // The kernel refuses destinations with host bits.
            destination: route.destination.trunc(),
            via: route.via,
        })
        .collect();
    // A route whose next hop alone changes is replaced in one move, without a gap.
    let replaced = |old: &&Route| !wanted.iter().any(|new| new.destination == old.destination);
    let change = Change {
        remove: seen.difference(&wanted).filter(replaced).cloned().collect(),
        add: wanted.difference(seen).cloned().collect(),
    };
    (!change.remove.is_empty() || !change.add.is_empty()).then_some(change)
}

fn script(change: &Change) -> String {
    let mut script = String::new();
    let mut line = |verb, route: &Route| {
        let Route { destination, via } = route;
        let _ = writeln!(
            script,
            "route {verb} {destination} via {via} proto {PROTOCOL}"
        );
    };
    change.remove.iter().for_each(|route| line("del", route));
    change.add.iter().for_each(|route| line("replace", route));
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, via: &str) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            via: via.parse().unwrap(),
        }
    }

    #[test]
    fn only_what_differs_is_changed() {
        let a = route("10.244.1.0/24", "10.88.0.11");
        let b = route("10.244.2.0/24", "10.88.0.12");
        let b_moved = route("10.244.2.0/24", "10.88.0.13");
        let seen = BTreeSet::from([a.clone(), b.clone()]);
        assert_eq!(plan(&seen, &[a.clone(), b.clone()]), None);
        assert_eq!(
            plan(&seen, &[a.clone(), route("10.244.2.9/24", "10.88.0.12")]),
            None
        );
        let moved = plan(&seen, &[a.clone(), b_moved.clone()]).unwrap();
        assert_eq!(
            moved,
            Change {
                remove: vec![],
                add: vec![b_moved]
            }
        );
        let gone = plan(&seen, &[]).unwrap();
        assert_eq!(
            gone,
            Change {
                remove: vec![a, b],
                add: vec![]
            }
        );
        let script = script(&gone);
        assert_eq!(
            script.lines().next().unwrap(),
            "route del 10.244.1.0/24 via 10.88.0.11 proto 119"
        );
    }

    #[test]
    fn what_ip_shows_is_understood() {
        let json = r#"[{"dst":"10.244.1.0/24","gateway":"10.88.0.11","dev":"eth0","protocol":"119","flags":[]},
                       {"dst":"10.9.9.9","gateway":"10.88.0.12","dev":"eth0","flags":["linkdown"]},
                       {"dst":"default","dev":"eth0","flags":[]}]"#;
        let routes = parse(json).unwrap();
        assert_eq!(
            routes,
            BTreeSet::from([
                route("10.244.1.0/24", "10.88.0.11"),
                route("10.9.9.9/32", "10.88.0.12")
            ])
        );
        assert!(parse("").unwrap().is_empty());
    }
}
