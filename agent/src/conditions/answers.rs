//! Questions to the programs of a machine that only a running one answers.
//!
//! A connection proves nothing: the kernel takes it for a program that hangs.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use windlass_common::condition::{
    ETCD_CA_PATH, ETCD_CERTIFICATE_PATH, ETCD_KEY_PATH, ETCD_PORT, KUBELET_PORT,
};
use windlass_common::step::ClientFiles;

use super::track::Seen;
use crate::host::Host;
use crate::steps::gate;

/// Most of an answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// Where containerd listens.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The kubelet's own word on itself.
pub(super) async fn kubelet() -> Result<String, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, KUBELET_PORT));
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|error| format!("does not connect: {error}"))?;
    let asked = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n";
    let broken = |error: std::io::Error| format!("the connection broke: {error}");
    stream.write_all(asked).await.map_err(broken)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(ANSWER_BYTES_MAX as u64);
    limited.read_to_end(&mut answer).await.map_err(broken)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok("it answers".to_owned());
    }
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Err(format!("answers {status}: {}", body.trim()))
}

/// etcd's word on its own member, and the alarms it knows.
pub(super) async fn etcd(host: &Host) -> Result<(), String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ETCD_PORT));
    let end = (address, "localhost", "/health?serializable=true");
    let client = ClientFiles {
        certificate_path: ETCD_CERTIFICATE_PATH.to_owned(),
        key_path: ETCD_KEY_PATH.to_owned(),
    };
    gate::look_https(host, end, ETCD_CA_PATH, Some(&client)).await
}

/// What etcd's answer says of its member, and of its alarms: one that answers with an alarm runs.
pub(super) fn of_etcd(health: Result<(), String>) -> (Seen, Seen) {
    let good = |says: &str| Seen::Good(says.to_owned());
    match health {
        Ok(()) => (good("it answers"), good("none is raised")),
        Err(why) if why.contains("ALARM") => (good("it answers"), Seen::Bad(why)),
        Err(why) => {
            let unknown = Seen::Unknown("etcd does not answer".to_owned());
            (Seen::Bad(why), unknown)
        }
    }
}

/// Asks containerd for its version, which it answers without looking at anything else.
pub(super) async fn containerd(host: &Host) -> Result<String, String> {
    let method = "/containerd.services.version.v1.Version/Version";
    let answered = call(host, method).await;
    let answered = answered.map_err(|not| match not {
        NotAnswered::Refused => "refuses to say its version".to_owned(),
        NotAnswered::Broken(why) => why,
    })?;
    // The first field of the message, a string.
    let text = field(&answered, 1).and_then(|text| std::str::from_utf8(text).ok());
    Ok(text.map_or_else(
        || "it answers".to_owned(),
        |text| format!("it answers: {text}"),
    ))
}

/// Whether containerd has a network for pods, which is what its CNI plugins and their configuration make: in the words
/// of the CRI, `NetworkReady`.
pub(super) async fn network(host: &Host) -> Seen {
    match call(host, "/runtime.v1.RuntimeService/Status").await {
        Ok(status) => network_ready(&status),
        Err(NotAnswered::Refused) => Seen::Unknown("containerd has no CRI to ask".to_owned()),
        // What is wrong with containerd is a condition of its own.
        Err(NotAnswered::Broken(why)) => Seen::Unknown(format!("containerd {why}")),
    }
}

/// What `runtime.v1.StatusResponse` says of the network (`api.proto` of the CRI): field 1 of it is the status, whose
/// fields 1 are conditions of a type, a status, a reason and a message.
fn network_ready(response: &[u8]) -> Seen {
    let text = |condition, number| {
        let bytes = field(condition, number).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let status = field(response, 1).unwrap_or_default();
    let conditions = fields(status).filter(|(number, _)| *number == 1);
    for (_, content) in conditions {
        let Content::Bytes(condition) = content else {
            continue;
        };
        if text(condition, 1) != "NetworkReady" {
            continue;
        }
        // A value of its default, which is false, is left out.
        let ready = fields(condition).any(|one| one == (2, Content::Number(1)));
        return if ready {
            Seen::Good("pods get a network".to_owned())
        } else {
            Seen::Bad(format!("{}: {}", text(condition, 3), text(condition, 4)))
        };
    }
    Seen::Unknown("containerd says nothing of a network".to_owned())
}

/// Why a call had no answer.
#[derive(Debug)]
enum NotAnswered {
    /// It was answered with an error.
    Refused,
    /// It was not answered, or in a way that nobody understands.
    Broken(String),
}

/// One call of a method of containerd with an empty message, and the message that it answers with.
async fn call(host: &Host, method: &str) -> Result<Vec<u8>, NotAnswered> {
    let connected = UnixStream::connect(host.path(CONTAINERD_SOCKET)).await;
    let mut stream =
        connected.map_err(|error| NotAnswered::Broken(format!("does not connect: {error}")))?;
    let broken = |error| NotAnswered::Broken(format!("the connection broke: {error}"));
    stream.write_all(&request(method)).await.map_err(broken)?;
    let (mut seen, mut data) = (0, Vec::new());
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.map_err(broken)?;
        let [a, b, c, kind, flags, w, x, y, z] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        seen += 9 + length;
        if seen > ANSWER_BYTES_MAX {
            let why = format!("answers more than {ANSWER_BYTES_MAX} bytes");
            return Err(NotAnswered::Broken(why));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(broken)?;
        let of_request = u32::from_be_bytes([w, x, y, z]) == REQUEST;
        match kind {
            DATA if of_request => {
                data.extend(body);
                if let Some(message) = message(&data) {
                    return Ok(message.to_vec());
                }
            }
            HEADERS if of_request && flags & END_STREAM != 0 => return Err(NotAnswered::Refused),
            RST_STREAM if of_request => return Err(NotAnswered::Broken("breaks off".to_owned())),
            GOAWAY => return Err(NotAnswered::Broken("sends away".to_owned())),
            _ => {}
        }
    }
}

/// A message that is whole: a byte that says it is not compressed, its length, and itself.
fn message(data: &[u8]) -> Option<&[u8]> {
    let (&[_, a, b, c, d], rest) = data.split_first_chunk()?;
    rest.get(..usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?)
}

/// What a field of a message of protobuf holds, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields of a message of protobuf, up to the first that cannot be read.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Content<'_>)> {
    std::iter::from_fn(move || {
        let key = varint(&mut message)?;
        let content = match key & 7 {
            0 => Content::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                let (content, rest) = message.split_at_checked(length)?;
                message = rest;
                Content::Bytes(content)
            }
            _ => return None,
        };
        Some((key >> 3, content))
    })
}

/// The first field of this number that holds bytes.
fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find_map(|(found, content)| match content {
        Content::Bytes(bytes) if found == number => Some(bytes),
        Content::Bytes(_) | Content::Number(_) => None,
    })
}

/// A number of seven bits a byte, the lowest first; taken off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Frames of HTTP/2 (RFC 9113).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The first stream of a client.
const REQUEST: u32 = 1;

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(body);
    frame
}

/// The preface, no settings, and one call of a method, whose name is below 127 bytes. One call on one connection needs
/// no state of HTTP/2, so that the agent carries no implementation of it.
fn request(method: &str) -> Vec<u8> {
    // HPACK (RFC 7541): indexed fields, then literals without indexing; every length is below 127.
    let mut headers = vec![0x80 | 3, 0x80 | 6];
    let mut literal = |index: Option<u8>, name: &str, value: &str| {
        match index {
            // An index of four bits, carried on in the next byte.
            Some(index) if index >= 15 => headers.extend([0x0f, index - 15]),
            Some(index) => headers.push(index),
            None => {
                headers.extend([0, u8::try_from(name.len()).unwrap_or_default()]);
                headers.extend(name.as_bytes());
            }
        }
        headers.push(u8::try_from(value.len()).unwrap_or_default());
        headers.extend(value.as_bytes());
    };
    literal(Some(1), ":authority", "localhost");
    literal(Some(4), ":path", method);
    literal(Some(31), "content-type", "application/grpc");
    literal(None, "te", "trailers");
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    request.extend(frame(HEADERS, END_HEADERS, REQUEST, &headers));
    // An empty message: not compressed, no bytes.
    request.extend(frame(DATA, END_STREAM, REQUEST, &[0; 5]));
    request
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_only_connects_is_no_answer() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("run/containerd")).unwrap();
        let host = Host::open(root.path()).unwrap();
        assert!(
            containerd(&host)
                .await
                .unwrap_err()
                .contains("does not connect")
        );
        let listener = UnixListener::bind(root.path().join(&CONTAINERD_SOCKET[1..])).unwrap();
        let serve = async {
            // The first hangs up, the second refuses, the third answers.
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
            for answer in [
                frame(HEADERS, END_STREAM | END_HEADERS, REQUEST, &[0x88]),
                frame(
                    DATA,
                    0,
                    REQUEST,
                    &[0, 0, 0, 0, 7, 0x0a, 5, b'2', b'.', b'2', b'.', b'9'],
                ),
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let asked = request("/containerd.services.version.v1.Version/Version");
                let mut asked = vec![0; asked.len()];
                stream.read_exact(&mut asked).await.unwrap();
                assert!(asked.starts_with(b"PRI * HTTP/2.0"));
                let mut answers = frame(SETTINGS, 0, 0, &[]);
                answers.extend(answer);
                stream.write_all(&answers).await.unwrap();
                // Until the other end has read it.
                let _ = stream.read(&mut [0]).await;
            }
        };
        let ask = async {
            assert!(containerd(&host).await.is_err());
            assert!(containerd(&host).await.unwrap_err().contains("refuses"));
            assert_eq!(containerd(&host).await.unwrap(), "it answers: 2.2.9");
        };
        tokio::join!(serve, ask);
    }

    /// A field of bytes.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 128, "one byte");
        [&[number << 3 | 2, length], content].concat()
    }

    fn condition(kind: &str, status: &[u8], reason: &str, says: &str) -> Vec<u8> {
        let words = [bytes(3, reason.as_bytes()), bytes(4, says.as_bytes())];
        let fields = [bytes(1, kind.as_bytes()), status.to_vec(), words.concat()];
        bytes(1, &fields.concat())
    }

    #[test]
    fn the_network_is_as_the_cri_says() {
        let runtime = condition("RuntimeReady", &[2 << 3, 1], "", "");
        let response = |network: &[u8]| bytes(1, &[&runtime[..], network].concat());
        let ready = condition("NetworkReady", &[2 << 3, 1], "", "");
        assert_eq!(
            network_ready(&response(&ready)),
            Seen::Good("pods get a network".to_owned())
        );
        let says = "cni plugin not initialized";
        let not = condition("NetworkReady", &[], "NetworkPluginNotReady", says);
        assert_eq!(
            network_ready(&response(&not)),
            Seen::Bad(format!("NetworkPluginNotReady: {says}"))
        );
        for odd in [&[][..], &[0xff; 20], &[1 << 3 | 2, 100], &response(&[])] {
            assert!(matches!(network_ready(odd), Seen::Unknown(_)), "{odd:?}");
        }
    }

    #[test]
    fn a_message_is_whole_or_none() {
        assert_eq!(message(&[0, 0, 0, 0]), None);
        assert_eq!(message(&[0, 0, 0, 0, 2, 7]), None);
        assert_eq!(message(&[0, 0, 0, 0, 2, 7, 8, 9]), Some(&[7, 8][..]));
        assert_eq!(message(&[0, 0xff, 0xff, 0xff, 0xff, 7]), None);
    }

    #[test]
    fn an_alarm_of_etcd_is_not_its_death() {
        let told = of_etcd(Err(
            r#"answers 503: {"health":"false","reason":"ALARM NOSPACE"}"#.to_owned(),
        ));
        assert!(matches!(told, (Seen::Good(_), Seen::Bad(why)) if why.contains("NOSPACE")));
        assert!(matches!(
            of_etcd(Err("TLS".to_owned())),
            (Seen::Bad(_), Seen::Unknown(_))
        ));
        assert!(matches!(of_etcd(Ok(())), (Seen::Good(_), Seen::Good(_))));
    }
}
