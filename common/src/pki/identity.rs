//! The URI names: `windlass://<director>/clusters/<cluster>/machines/<machine>/incarnations/<n>` and
//! `windlass://<director>/operators/<name>`.
//!
//! Parsing accepts exactly what formatting writes, so equal identities have equal texts.

use std::fmt;
use std::str::FromStr;

use crate::error::ErrorClass;
use crate::id::{ClusterName, DirectorId, Incarnation, MachineName, OperatorName};

const SCHEME: &str = "windlass://";

/// One incarnation of one machine of one cluster of one director.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineIdentity {
    /// Whose machine.
    pub director: DirectorId,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Which machine.
    pub machine: MachineName,
    /// Which rebirth of it.
    pub incarnation: Incarnation,
}

/// One operator of one director.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorIdentity {
    /// Of which director.
    pub director: DirectorId,
    /// Who.
    pub name: OperatorName,
}

/// Why a URI is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no {what}; it must look like {shape}")]
pub struct IdentityError {
    what: &'static str,
    shape: &'static str,
    uri: String,
}

impl IdentityError {
    /// Who acts: a certificate with such a name was issued for something else.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl fmt::Display for MachineIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{SCHEME}{}/clusters/{}/machines/{}/incarnations/{}",
            self.director, self.cluster, self.machine, self.incarnation
        )
    }
}

impl FromStr for MachineIdentity {
    type Err = IdentityError;
    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError {
            what: "machine identity",
            shape: "windlass://<director>/clusters/<cluster>/machines/<machine>/incarnations/<n>",
            uri: uri.chars().take(256).collect(),
        };
        let parts: Vec<&str> = uri
            .strip_prefix(SCHEME)
            .ok_or_else(bad)?
            .split('/')
            .collect();
        let [
            director,
            "clusters",
            cluster,
            "machines",
            machine,
            "incarnations",
            incarnation,
        ] = parts[..]
        else {
            return Err(bad());
        };
        let identity = MachineIdentity {
            director: director.parse().map_err(|_| bad())?,
            cluster: cluster.parse().map_err(|_| bad())?,
            machine: machine.parse().map_err(|_| bad())?,
            incarnation: Incarnation(incarnation.parse().map_err(|_| bad())?),
        };
        // `parse` of a number accepts `+1` and `01`.
        if identity.to_string() == uri {
            Ok(identity)
        } else {
            Err(bad())
        }
    }
}

impl fmt::Display for OperatorIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/operators/{}", self.director, self.name)
    }
}

impl FromStr for OperatorIdentity {
    type Err = IdentityError;
    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let bad = || IdentityError {
            what: "operator identity",
            shape: "windlass://<director>/operators/<name>",
            uri: uri.chars().take(256).collect(),
        };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(bad)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [director, "operators", name] = parts[..] else {
            return Err(bad());
        };
        Ok(OperatorIdentity {
            director: director.parse().map_err(|_| bad())?,
            name: name.parse().map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_identities_have_one_spelling() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/1", true),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/4294967295", true),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/4294967296", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/01", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/+1", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/1/", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0", false),
            ("windlass://d1/clusters//machines/demo-cp-0/incarnations/1", false),
            ("windlass://D1/clusters/demo/machines/demo-cp-0/incarnations/1", false),
            ("https://d1/clusters/demo/machines/demo-cp-0/incarnations/1", false),
            ("windlass://d1/operators/demo", false),
            ("", false),
        ];
        for (uri, ok) in cases {
            let parsed = uri.parse::<MachineIdentity>();
            assert_eq!(parsed.is_ok(), ok, "{uri}");
            if let Ok(identity) = parsed {
                assert_eq!(identity.to_string(), uri);
            }
        }
    }

    #[test]
    fn operator_identities_have_one_spelling() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("windlass://d1/operators/admin", true),
            ("windlass://d1/operators/", false),
            ("windlass://d1/operators/a/b", false),
            ("windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/1", false),
        ];
        for (uri, ok) in cases {
            let parsed = uri.parse::<OperatorIdentity>();
            assert_eq!(parsed.is_ok(), ok, "{uri}");
            if let Ok(identity) = parsed {
                assert_eq!(identity.to_string(), uri);
            }
        }
    }
}
