//! TOML text to [`Config`]; the same field reader as for clusters, so that all faults come at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::Value;
use windlass_common::id::ZoneName;
use windlass_common::limits::{LAPSED_GRACE, LAPSED_GRACE_HOURS_MAX};

use super::{ApiConfig, Config, DataDir, GatewayConfig, LocalConfig, StemcellConfig, ZONES_MAX};
use super::{backup, resurrector};
use crate::gateway::ArtifactRates;
use crate::spec::{Faults, Fields, shown, usable_network};

/// Longest provider name: it begins the names of network links, of which Linux allows 15 bytes.
pub(super) const PROVIDER_NAME_MAX: usize = 8;
/// Prefix lengths of the machine network: a /29 has room for five machines.
const MACHINE_PREFIXES: std::ops::RangeInclusive<u8> = 16..=29;

/// Rates of artifacts, MiB/s: from what a thin line bears to more than any network card does.
const ARTIFACT_MIB_PER_S: std::ops::RangeInclusive<u32> = 1..=100_000;

pub(super) fn config(text: &str, dir: &DataDir) -> Result<Config, Faults> {
    let mut faults = Faults::default();
    let table: toml::Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            let line = error
                .span()
                .map_or(0, |span| text[..span.start].lines().count().max(1));
            let message = error
                .message()
                .lines()
                .next()
                .unwrap_or("cannot be read")
                .to_owned();
            faults.add(format!("line {line}"), message, "TOML");
            return Err(faults);
        }
    };
    let value = match serde_json::to_value(table) {
        Ok(value) => value,
        Err(error) => {
            faults.add("", error.to_string(), "TOML without special values");
            return Err(faults);
        }
    };
    match whole(&value, dir, &mut faults) {
        Some(config) if faults.is_empty() => Ok(config),
        Some(_) | None => Err(faults),
    }
}

fn whole(value: &Value, dir: &DataDir, faults: &mut Faults) -> Option<Config> {
    let mut fields = Fields::open(value, "", faults)?;
    let log = fields.optional(
        "log",
        "info".to_owned(),
        "error, warn, info, debug, trace, or a list of module=level",
        faults,
        |text| {
            let sound = text.split(',').all(|part| {
                let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
                !level.is_empty() && level.parse::<tracing::level_filters::LevelFilter>().is_ok()
            });
            (sound && text.parse::<tracing_subscriber::EnvFilter>().is_ok())
                .then(|| text.to_owned())
        },
    );
    let empty = Value::Object(serde_json::Map::new());
    let api = api(fields.take("api").unwrap_or(&empty), faults);
    let gateway = gateway(fields.take("gateway").unwrap_or(&empty), faults);
    let stemcells = stemcells(fields.take("stemcells").unwrap_or(&empty), dir, faults);
    let local = match fields.take("provider") {
        None => local(&empty, dir, faults),
        Some(value) => {
            let mut inner = Fields::open(value, "provider", faults)?;
            let local = local(inner.take("local").unwrap_or(&empty), dir, faults);
            inner.close(faults);
            local
        }
    };
    let backup = backup::read(fields.take("backup").unwrap_or(&empty), dir, faults);
    let resurrector = resurrector::read(fields.take("resurrector").unwrap_or(&empty), faults);
    fields.close(faults);
    Some(Config {
        log: log?,
        api: api?,
        gateway: gateway?,
        stemcells: stemcells?,
        local: local?,
        resurrector: resurrector?,
        backup: backup?,
    })
}

const ADDRESS: &str = "an IP address and a port other than 0, for example";

fn address(text: &str) -> Option<SocketAddr> {
    text.parse::<SocketAddr>()
        .ok()
        .filter(|address| address.port() != 0)
}

fn api(value: &Value, faults: &mut Faults) -> Option<ApiConfig> {
    let mut fields = Fields::open(value, "api", faults)?;
    let default = SocketAddr::from(([127, 0, 0, 1], 7443));
    let allowed = format!("{ADDRESS} {default}");
    let listen = fields.optional("listen", default, &allowed, faults, address);
    let allowed = "a list of DNS names";
    let names = list(&mut fields, "names", allowed, faults, |text| {
        let name = rustls_pki_types::DnsName::try_from(text).is_ok();
        name.then(|| text.to_owned())
    });
    fields.close(faults);
    Some(ApiConfig {
        listen: listen?,
        names: names?,
    })
}

fn gateway(value: &Value, faults: &mut Faults) -> Option<GatewayConfig> {
    let mut fields = Fields::open(value, "gateway", faults)?;
    let default = SocketAddr::from(([0, 0, 0, 0], 7444));
    let allowed = format!("{ADDRESS} {default}");
    let listen = fields.optional("listen", default, &allowed, faults, address);
    let allowed = "a list of addresses with ports that machines can reach";
    let advertise = list(&mut fields, "advertise", allowed, faults, |text| {
        address(text)
            .filter(|address| !address.ip().is_unspecified() && !address.ip().is_loopback())
    });
    let default = ArtifactRates::default();
    let mut rate = |key, default_bytes: u64| {
        let default = u32::try_from(default_bytes >> 20).unwrap_or(u32::MAX);
        let mib = fields.number(key, default, &ARTIFACT_MIB_PER_S, "MiB/s", faults)?;
        Some(u64::from(mib) << 20)
    };
    let total = rate("artifact_mib_per_s", default.total_bytes_per_s);
    let agent = rate("artifact_mib_per_s_per_agent", default.agent_bytes_per_s);
    let default = u32::try_from(LAPSED_GRACE.as_secs() / 3600).unwrap_or(0);
    let range = 0..=LAPSED_GRACE_HOURS_MAX;
    let grace = fields.number("lapsed_grace_hours", default, &range, "hours", faults);
    fields.close(faults);
    Some(GatewayConfig {
        listen: listen?,
        advertise: advertise?,
        artifacts: ArtifactRates {
            total_bytes_per_s: total?,
            agent_bytes_per_s: agent?,
        },
        lapsed_grace: Duration::from_secs(u64::from(grace?) * 3600),
    })
}

fn stemcells(value: &Value, dir: &DataDir, faults: &mut Faults) -> Option<StemcellConfig> {
    let mut fields = Fields::open(value, "stemcells", faults)?;
    let path = |text: &str| (!text.is_empty()).then(|| dir.path().join(text));
    let default = dir.path().join("stemcells");
    let directory = fields.optional("directory", default, "a path", faults, path);
    let default = directory.clone().unwrap_or_default().join("trusted.pub");
    let trusted_keys = fields.optional("trusted_keys", default, "a path", faults, path);
    fields.close(faults);
    Some(StemcellConfig {
        directory: directory?,
        trusted_keys: trusted_keys?,
    })
}

fn local(value: &Value, dir: &DataDir, faults: &mut Faults) -> Option<LocalConfig> {
    let mut fields = Fields::open(value, "provider.local", faults)?;
    let allowed = format!("1 to {PROVIDER_NAME_MAX} lower-case letters and digits, first a letter");
    let name = fields.optional("name", "local".to_owned(), &allowed, faults, provider_name);
    let allowed = format!(
        "an IPv4 network in CIDR notation with no host bits set, /{} to /{}, for example 10.77.0.0/24",
        MACHINE_PREFIXES.start(),
        MACHINE_PREFIXES.end()
    );
    let default = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 77, 0, 0), 24);
    let cidr = fields.optional("cidr", default, &allowed, faults, |text| {
        let net: Ipv4Net = text.parse().ok()?;
        let sound = net.trunc() == net && MACHINE_PREFIXES.contains(&net.prefix_len());
        (sound && usable_network(net)).then_some(net)
    });
    let runc = fields.optional(
        "runc",
        PathBuf::from("runc"),
        "an absolute path, or a name to be found in PATH",
        faults,
        |text| {
            (text.starts_with('/') || (!text.is_empty() && !text.contains('/')))
                .then(|| text.into())
        },
    );
    let default = dir.provider();
    let path = |text: &str| (!text.is_empty()).then(|| dir.path().join(text));
    let directory = fields.optional("directory", default, "a path", faults, path);
    let allowed = format!("a list of at most {ZONES_MAX} zone names, all different");
    let zones = list(&mut fields, "zones", &allowed, faults, |text| {
        ZoneName::new(text).ok()
    });
    let zones = zones.filter(|zones| {
        let different = zones.iter().collect::<BTreeSet<_>>().len() == zones.len();
        let sound = different && zones.len() <= ZONES_MAX;
        if !sound {
            faults.add(
                "provider.local.zones",
                format!("{} names", zones.len()),
                &allowed,
            );
        }
        sound
    });
    fields.close(faults);
    Some(LocalConfig {
        directory: directory?,
        name: name?,
        cidr: cidr?,
        runc: runc?,
        zones: zones?,
    })
}

pub(super) fn provider_name(text: &str) -> Option<String> {
    let sound = text.len() <= PROVIDER_NAME_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    sound.then(|| text.to_owned())
}

pub(super) fn list<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    allowed: &str,
    faults: &mut Faults,
    read: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(value) = fields.take(key) else {
        return Some(Vec::new());
    };
    let Some(values) = value.as_array() else {
        faults.add(fields.path(key), shown(value), allowed);
        return None;
    };
    let mut list = Vec::new();
    for (i, value) in values.iter().enumerate() {
        match value.as_str().and_then(&read) {
            Some(item) => list.push(item),
            None => faults.add(format!("{}[{i}]", fields.path(key)), shown(value), allowed),
        }
    }
    (list.len() == values.len()).then_some(list)
}
