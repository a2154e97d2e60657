//! `evict`: tells pods of the machine's own node to leave, as the machine's kubelet.
//!
//! # Invariants
//! * Nobody is told who is not bound to this node: a look with that selector comes first, as NodeRestriction
//!   demands it of the request itself.
//! * Each pod is told once, with its uid; whether and when again is the director's to say.
//! * The API is reached as the kubelet reaches it: the proxy on loopback, under the cluster's authority and the
//!   endpoint's name, with the kubelet's certificate as it is now.
//! * What became of a pod is said before the next one is told, so that a deadline loses one answer at most.
//!
//! # After a crash
//! The director sends the step again, or tells the pods itself; telling one twice is harmless.
//!
//! # Not here
//! Order, budgets, deadlines (the director's drain). Cordons and taints, which a node's identity may not set.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::timeout;
use windlass_common::error::ErrorClass;
use windlass_common::limits::EVICT_MESSAGE_MAX;
use windlass_common::step::{
    Evict, EvictAnswer, EvictHow, EvictOutcome, EvictPod, OutputStream, Payload,
};

use super::{Context, Failure, Run, https};

/// How long connecting, and each request, may take: webhooks have ten seconds by default.
const CALL: Duration = Duration::from_secs(15);
/// Most of an answer that is read, bytes: metadata of one object, of which annotations have 256 KiB at most.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Objects without what they hold: nothing of a pod but that it is there has to be known.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// The same of lists.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
const JSON: &str = "application/json";

pub(super) async fn run(context: &Context, run: &Run, evict: &Evict) -> Result<Payload, Failure> {
    let end = (evict.address, evict.server_name.as_str());
    let open = https::open(&context.host, end, &evict.ca_path, Some(&evict.client));
    let opened = timeout(CALL, open).await;
    let late = |_| Err(format!("no answer within {} s", CALL.as_secs()));
    let (sender, connection) = opened.unwrap_or_else(late).map_err(|why| {
        let message = format!("the API is not reached at {}: {why}", evict.address);
        Failure::new(ErrorClass::Retry, message)
    })?;
    let tell = tell_all(run, evict, sender);
    tokio::pin!(tell);
    // Driven here, so that nothing outlives the step.
    tokio::select! {
        () = &mut tell => {}
        // Dropped with its end, which is then said of each pod that was not told.
        _ = connection => tell.await,
    }
    Ok(Payload::None)
}

async fn tell_all(run: &Run, evict: &Evict, mut sender: https::Sender) {
    for pod in &evict.pods {
        let outcome = tell(evict, pod, &mut sender).await;
        if outcome == EvictOutcome::Accepted {
            let past = match pod.how {
                EvictHow::Evict => "",
                EvictHow::Delete => ", past its budgets",
            };
            run.changed(format!(
                "told {}/{} to leave{past}",
                pod.namespace, pod.name
            ));
        }
        let uid = pod.uid.clone();
        // Texts and numbers are always JSON.
        let Ok(mut line) = serde_json::to_vec(&EvictAnswer { uid, outcome }) else {
            continue;
        };
        line.push(b'\n');
        run.progress.output(OutputStream::Stdout, &line).await;
    }
}

async fn tell(evict: &Evict, pod: &EvictPod, sender: &mut https::Sender) -> EvictOutcome {
    let asked = async {
        if !is_here(evict, pod, sender).await? {
            return Ok(EvictOutcome::Elsewhere);
        }
        let ask = match pod.how {
            EvictHow::Evict => eviction(pod),
            EvictHow::Delete => deletion(pod),
        };
        let (status, headers, body) = exchange(evict, ask, sender).await?;
        Ok(outcome(status, &headers, &body))
    };
    let ended = asked.await;
    ended.unwrap_or_else(|outcome| outcome)
}

/// Whether the API server knows the pod, whoever has its name now, as one of this node.
async fn is_here(
    evict: &Evict,
    pod: &EvictPod,
    sender: &mut https::Sender,
) -> Result<bool, EvictOutcome> {
    #[derive(Deserialize)]
    struct Found {
        // Null when there are none.
        items: Option<Vec<IgnoredAny>>,
    }
    let (namespace, name) = (&pod.namespace, &pod.name);
    let selector = format!("spec.nodeName%3D{}%2Cmetadata.name%3D{name}", evict.node);
    let look = Ask {
        method: Method::GET,
        path: format!("/api/v1/namespaces/{namespace}/pods?fieldSelector={selector}"),
        accept: METADATA_LIST,
        body: None,
    };
    let (status, headers, body) = exchange(evict, look, sender).await?;
    if status != StatusCode::OK {
        return Err(outcome(status, &headers, &body));
    }
    let found: Found = serde_json::from_slice(&body).map_err(|error| EvictOutcome::Failed {
        status: None,
        message: format!("the list of pods named {name} cannot be read: {error}"),
    })?;
    Ok(found.items.is_some_and(|items| !items.is_empty()))
}

/// One request.
struct Ask {
    method: Method,
    path: String,
    accept: &'static str,
    body: Option<Value>,
}

fn eviction(pod: &EvictPod) -> Ask {
    let (namespace, name) = (&pod.namespace, &pod.name);
    Ask {
        method: Method::POST,
        path: format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction"),
        accept: JSON,
        body: Some(json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": options(pod),
        })),
    }
}

fn deletion(pod: &EvictPod) -> Ask {
    Ask {
        method: Method::DELETE,
        path: format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name),
        accept: METADATA,
        body: Some(options(pod)),
    }
}

fn options(pod: &EvictPod) -> Value {
    let mut options = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": pod.uid},
    });
    if let Some(seconds) = pod.grace_seconds {
        options["gracePeriodSeconds"] = seconds.into();
    }
    options
}

/// Sends one request and reads its answer.
async fn exchange(
    evict: &Evict,
    ask: Ask,
    sender: &mut https::Sender,
) -> Result<(StatusCode, HeaderMap, Bytes), EvictOutcome> {
    let failed = |message: String| EvictOutcome::Failed {
        status: None,
        message: shown(&message),
    };
    let body = ask.body.map(|body| Bytes::from(body.to_string()));
    let request = Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header(HOST, &evict.server_name)
        .header(USER_AGENT, "windlass-agent")
        .header(ACCEPT, ask.accept)
        .header(CONTENT_TYPE, JSON)
        .body(Full::new(body.unwrap_or_default()))
        .map_err(|error| failed(format!("HTTP: {error}")))?;
    let exchanged = timeout(CALL, async {
        sender.ready().await.map_err(https::http)?;
        let answer = sender.send_request(request).await.map_err(https::http)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("the answer cannot be read: {error}"))?;
        Ok((head.status, head.headers, body.to_bytes()))
    });
    let late = |_| Err(format!("no answer within {} s", CALL.as_secs()));
    exchanged.await.unwrap_or_else(late).map_err(failed)
}

/// What an API server's answer says of a pod that was told to leave.
fn outcome(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> EvictOutcome {
    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        message: String,
    }
    let said = || {
        let status = serde_json::from_slice(body).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(body).into_owned(),
        });
        shown(&status.message)
    };
    match status.as_u16() {
        200..=299 => EvictOutcome::Accepted,
        // 409: the name is another pod's by now.
        404 | 409 => EvictOutcome::Gone,
        429 => {
            let after = headers.get(RETRY_AFTER).and_then(|at| at.to_str().ok());
            EvictOutcome::Kept {
                message: said(),
                retry_after_seconds: after.and_then(|seconds| seconds.parse().ok()),
            }
        }
        401 | 403 => EvictOutcome::Forbidden { message: said() },
        status => EvictOutcome::Failed {
            status: Some(status),
            message: said(),
        },
    }
}

/// As much of a message as is passed on, on one line.
fn shown(message: &str) -> String {
    let mut text = message.replace(char::is_control, " ");
    text.truncate(text.floor_char_boundary(EVICT_MESSAGE_MAX));
    text
}

#[cfg(test)]
mod tests;
