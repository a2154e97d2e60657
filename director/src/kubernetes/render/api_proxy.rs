//! The way from a machine's components to the API servers: HAProxy on loopback, on every machine.
//!
//! kubelet, kube-proxy and the controllers go through it, so that they depend neither on the cluster's
//! endpoint outside nor on any single API server. It passes bytes: TLS and the endpoint's name are between
//! component and API server. HAProxy lives by itself under systemd, whatever becomes of agent and director.
//!
//! An API server counts while it says that it is ready, under the cluster's certificate: it does not once it is told
//! to end, nor while its member of etcd is away. Where none is ready, those that answer a TLS handshake are tried: what
//! they have in memory is better than nothing. A kernel alone would accept connections for a process that is frozen.
//! Open connections of one that stops counting are left alone: it may be finishing its requests. One that is dead is
//! noticed by its clients, which ping.
//!
//! A control-plane machine prefers its own API server: in the middle of an upgrade its controllers are as
//! new as that one, and an older one elsewhere would not know them (version skew policy of Kubernetes).

use std::fmt::Write as _;

use super::super::facts::{ClusterFacts, MachineFacts, Role};
use super::super::{API_PORT, API_PROXY_PORT};
use super::KUBERNETES_CA_PATH;

/// Its configuration; a path unit has it read again when it changes, which cuts no connection.
pub(super) const CONFIG_PATH: &str = "/etc/windlass/api-proxy.cfg";

/// Connections at once: a kubelet keeps a handful, a controller manager about ten.
const CONNECTIONS_MAX: u32 = 1024;

/// The configuration file.
pub(super) fn config(cluster: &ClusterFacts, machine: &MachineFacts) -> String {
    let name = &cluster.endpoint.name;
    let mut text = format!(
        "\
global
  maxconn {CONNECTIONS_MAX}
  log stdout format raw local0 notice

defaults
  mode tcp
  log global
  retries 3
  option redispatch 1
  option clitcpka
  option srvtcpka
  timeout connect 1s
  timeout client 30m
  timeout server 30m
  timeout check 1s

frontend api
  bind 127.0.0.1:{API_PROXY_PORT}
  use_backend answering if {{ nbsrv(ready) lt 1 }}
  default_backend ready
"
    );
    let looks = [
        (
            "ready",
            format!(
                "\
  option httpchk
  http-check connect ssl sni {name}
  http-check send meth GET uri /readyz ver HTTP/1.1 hdr host {name}
  http-check expect status 200
"
            ),
        ),
        (
            "answering",
            format!("  option tcp-check\n  tcp-check connect ssl sni {name}\n"),
        ),
    ];
    for (backend, look) in looks {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "
backend {backend}
  balance leastconn
{look}  default-server check inter 1s fastinter 200ms downinter 200ms fall 2 rise 1 \
ssl-min-ver TLSv1.3 ca-file {KUBERNETES_CA_PATH} verify required verifyhost {name}
"
        );
        for server in cluster.control_planes() {
            let others = machine.role == Role::ControlPlane && server.name != machine.name;
            let rank = if others { " backup" } else { "" };
            let _ = writeln!(
                text,
                "  server {} {}:{API_PORT}{rank}",
                server.name, server.address
            );
        }
    }
    text
}
