//! Gates that users put between one machine and the next: URLs that have to answer.

use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use windlass_common::cluster::GateSpec;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::MachineName;

use crate::rollout::{Done, EffectError, ProgressSink};

/// Pause between two looks at a gate; what `successThreshold` counts is as far apart.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Waits until all gates are open, one after the other.
///
/// # Errors
/// Of class operator, when one is not open in its time: the change stops there.
pub(super) async fn open(
    gates: &[GateSpec],
    machine: &MachineName,
    progress: &ProgressSink,
) -> Result<Done, EffectError> {
    let mut changes = Vec::with_capacity(gates.len());
    for gate in gates {
        let looks = pass(gate, progress).await.map_err(|last| {
            EffectError::new(
                ErrorClass::Operator,
                format!(
                    "gate {} is not open {} s after machine {machine} changed: {} {last}; mend what it looks \
                     at or change the gate, then retry the task",
                    gate.name, gate.http.timeout_seconds, gate.http.url
                ),
            )
        })?;
        changes.push(format!("gate {} is open after {looks} looks", gate.name));
    }
    Ok(Done {
        changes,
        records: Vec::new(),
    })
}

/// Looks at one gate until it is open; returns how often, or what it said last.
async fn pass(gate: &GateSpec, progress: &ProgressSink) -> Result<u32, String> {
    let deadline = Instant::now() + Duration::from_secs(u64::from(gate.http.timeout_seconds));
    let (mut looks, mut successes) = (0, 0);
    loop {
        looks += 1;
        let look = timeout(LOOK_LIMIT, look(&gate.http.url)).await;
        let look = look.unwrap_or_else(|_| Err(format!("gives no answer in {LOOK_LIMIT:?}")));
        let last = match look {
            Ok(()) => {
                successes += 1;
                if successes >= gate.http.success_threshold {
                    return Ok(looks);
                }
                format!("has answered {successes} times in a row")
            }
            Err(why) => {
                successes = 0;
                why
            }
        };
        if Instant::now() + LOOK_INTERVAL > deadline {
            return Err(last);
        }
        progress.stage(format!("gate {}: {last}", gate.name));
        sleep(LOOK_INTERVAL).await;
    }
}

/// Asks a URL once; what it says when that is not 200.
async fn look(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
    let host = uri.host().ok_or("names no host")?;
    let host = host.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| format!("does not connect: {error}"))?;
    let failed = |error: hyper::Error| format!("fails: {}", ErrorChain(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, "windlass-director")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot be asked: {error}"))?;
    let exchange = async {
        let status = sender.send_request(request).await.map_err(failed)?.status();
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(format!("answers {status}"))
        }
    };
    // The connection is driven here, so that nothing outlives the look.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // What ended the connection is in the answer's error, if there is no answer.
        _ = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use windlass_common::cluster::HttpGate;

    use super::*;

    /// Answers these, one a connection, the last one for ever.
    async fn server(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/ok?x=1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut answers = answers.iter().peekable();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /ok?x=1 HTTP/1.1"));
                let answer = answers.peek().copied().unwrap();
                if answers.len() > 1 {
                    answers.next();
                }
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        });
        url
    }

    async fn ask(
        url: String,
        timeout_seconds: u32,
        success_threshold: u32,
    ) -> Result<Done, EffectError> {
        let gate = GateSpec {
            name: "shop".into(),
            http: HttpGate {
                url,
                timeout_seconds,
                success_threshold,
            },
        };
        let machine = MachineName::new("demo-w-0").unwrap();
        let (events, _) = tokio::sync::broadcast::channel(8);
        let progress = ProgressSink {
            events,
            key: crate::model::StepKey("machine/demo-w-0/await-gates".into()),
        };
        open(&[gate], &machine, &progress).await
    }

    #[tokio::test]
    async fn a_gate_opens_after_so_many_answers_in_a_row() {
        let url = server(&["200 OK", "503 Not Yet", "200 OK"]).await;
        let done = ask(url, 60, 2).await.unwrap();
        assert_eq!(done.changes, ["gate shop is open after 4 looks"]);
    }

    #[tokio::test]
    async fn a_gate_that_stays_shut_says_why() {
        let url = server(&["503 Not Yet"]).await;
        let error = ask(url.clone(), 1, 1).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Operator);
        for part in ["gate shop", "demo-w-0", "503", url.as_str()] {
            assert!(error.message.contains(part), "{part}: {}", error.message);
        }
        let nobody = ask("http://127.0.0.1:1/".into(), 1, 1).await.unwrap_err();
        assert!(
            nobody.message.contains("does not connect"),
            "{}",
            nobody.message
        );
    }
}
