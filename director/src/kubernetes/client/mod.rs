//! A small client of the Kubernetes API, over whatever carries bytes to an API server.
//!
//! The director has no route to API servers: a [`Connector`] opens a stream through the agent of a
//! control-plane machine. TLS runs end to end between director and API server inside that stream, so
//! the agent in between reads nothing, and the server has to prove the cluster endpoint's name.
//!
//! # Invariants
//! * Every call has a deadline, every answer a size limit.
//! * No task is spawned: a connection lives inside the call that uses it or idle in a pool of
//!   [`IDLE_MAX`]; dropping a call closes its connection.
//! * A call is repeated only when repeating is harmless, and only because a pooled connection had
//!   been closed by the server.
//!
//! # After a crash
//! No state. Applying is idempotent; callers apply again.
//!
//! # Not here
//! Watches. Which objects are applied: [`super::addons`].

mod connection;
mod error;
mod resource;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use windlass_common::gate::ServicePort;

use self::connection::{Connection, Exchange};
use super::facts::Endpoint;
use super::pki::ClientIdentity;

pub(crate) use self::connection::tls_config;
pub use self::connection::{ByteStream, ConnectFuture, Connector};
pub use self::error::{ApiError, SetupError};
pub(crate) use self::resource::encode;
pub use self::resource::{Node, NodeCondition, Resource, Taint};

/// Owner of the fields that the director applies.
pub const FIELD_MANAGER: &str = "windlass";
/// How long one call may take: an API server that starts answers within seconds or refuses.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer. A page has at most [`PAGE_OBJECTS`] objects; a large Node or Pod is 30 KB.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Objects asked for at once; longer lists come in pages.
pub const PAGE_OBJECTS: usize = 250;
/// Pages of one list: with [`PAGE_OBJECTS`] more objects than Kubernetes supports pods (150 000).
const PAGES_MAX: usize = 1000;
/// Connections kept open between calls.
pub const IDLE_MAX: usize = 4;

/// Whole objects.
const JSON: &str = "application/json";
/// Objects without what they hold.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// The same of lists.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// A client with one identity on one cluster.
pub struct Client {
    connector: Arc<dyn Connector>,
    tls: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    host: String,
    expires_at: Timestamp,
    deadline: Duration,
    idle: Mutex<Vec<Connection>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Page<T> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Debug, Deserialize, Default)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Clone)]
struct Call {
    method: Method,
    path: String,
    content: Option<(&'static str, Bytes)>,
    /// What is to be answered.
    accept: &'static str,
    /// Whether doing it twice is the same as doing it once.
    repeatable: bool,
}

impl Client {
    /// A client that connects through `connector` as `identity`.
    ///
    /// # Errors
    /// [`SetupError`]: a certificate, key or name that is none.
    pub fn new(
        connector: Arc<dyn Connector>,
        endpoint: &Endpoint,
        authority_pem: &str,
        identity: &ClientIdentity,
    ) -> Result<Self, SetupError> {
        let server_name =
            ServerName::try_from(endpoint.name.clone()).map_err(|_| SetupError::Name {
                name: endpoint.name.clone(),
            })?;
        Ok(Self {
            connector,
            tls: Arc::new(connection::tls_config(authority_pem, identity)?),
            server_name,
            host: format!("{}:{}", endpoint.name, endpoint.port),
            expires_at: identity.expires_at,
            deadline: CALL_DEADLINE,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Whether the client's certificate lives for another `margin` at `now`. Whoever keeps a client
    /// makes a new one when it does not: a connection that is open goes on, a new one is refused.
    pub fn is_fresh(&self, now: Timestamp, margin: Duration) -> bool {
        self.expires_at.duration_since(now) > margin.try_into().unwrap_or(SignedDuration::MAX)
    }

    /// The same client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether a health path such as `/readyz` answers 200.
    ///
    /// # Errors
    /// [`ApiError`]; a server that is not healthy answers with a status.
    pub async fn probe(&self, path: &str) -> Result<(), ApiError> {
        self.call(Call::get(path.to_owned())).await.map(drop)
    }

    /// One object.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_not_found`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<T, ApiError> {
        let path = resource.path(namespace, Some(name));
        let answer = self.call(Call::get(path.clone())).await?;
        decode(&path, &answer)
    }

    /// All objects, or those that a label selector selects.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn list<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        label_selector: Option<&str>,
    ) -> Result<Vec<T>, ApiError> {
        let selector = label_selector
            .map(|s| format!("&labelSelector={}", resource::encode(s)))
            .unwrap_or_default();
        self.pages(resource, namespace, &selector).await
    }

    /// The objects that a field selector selects, for example the pods of a node.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn list_by_field<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        field_selector: &str,
    ) -> Result<Vec<T>, ApiError> {
        let selector = format!("&fieldSelector={}", resource::encode(field_selector));
        self.pages(resource, namespace, &selector).await
    }

    /// Namespaces and names of all objects of a namespaced resource; nothing else of them is sent.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn names(&self, resource: &Resource) -> Result<Vec<(String, String)>, ApiError> {
        #[derive(Deserialize)]
        struct Named {
            metadata: Name,
        }
        #[derive(Deserialize)]
        struct Name {
            #[serde(default)]
            namespace: String,
            name: String,
        }
        let found: Vec<Named> = self.accepting(resource, None, "", METADATA_LIST).await?;
        let name = |found: Named| (found.metadata.namespace, found.metadata.name);
        Ok(found.into_iter().map(name).collect())
    }

    /// Has an object written to the store again as it is, and answered without its content.
    ///
    /// # Errors
    /// [`ApiError`]; see [`ApiError::is_not_found`].
    pub async fn touch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<(), ApiError> {
        let base = resource.path(namespace, Some(name));
        let path = format!("{base}?fieldManager={FIELD_MANAGER}");
        let nothing = Value::Object(serde_json::Map::new());
        let call = Call::patch(path, "application/merge-patch+json", &nothing);
        let call = Call {
            accept: METADATA,
            ..call
        };
        self.call(call).await.map(drop)
    }

    async fn pages<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selector: &str,
    ) -> Result<Vec<T>, ApiError> {
        self.accepting(resource, namespace, selector, JSON).await
    }

    async fn accepting<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selector: &str,
        accept: &'static str,
    ) -> Result<Vec<T>, ApiError> {
        let base = resource.path(namespace, None);
        let mut objects = Vec::new();
        let mut next = String::new();
        for _ in 0..PAGES_MAX {
            let token = if next.is_empty() {
                String::new()
            } else {
                format!("&continue={}", resource::encode(&next))
            };
            let path = format!("{base}?limit={PAGE_OBJECTS}{selector}{token}");
            let call = Call {
                accept,
                ..Call::get(path.clone())
            };
            let answer = self.call(call).await?;
            let page: Page<T> = decode(&path, &answer)?;
            objects.extend(page.items);
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(objects);
            }
        }
        Err(ApiError::TooLarge {
            path: base,
            limit: PAGES_MAX * PAGE_OBJECTS,
            unit: "objects",
        })
    }

    /// Server-side apply of a whole object, as [`FIELD_MANAGER`]. Fields that others set over ours are
    /// taken back; fields we never named stay as they are.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn apply(&self, object: &Value) -> Result<Value, ApiError> {
        let base = resource::path_of(object)?;
        let path = format!("{base}?fieldManager={FIELD_MANAGER}&force=true");
        // JSON is YAML.
        let answer = self
            .call(Call::patch(
                path.clone(),
                "application/apply-patch+yaml",
                object,
            ))
            .await?;
        decode(&path, &answer)
    }

    /// JSON merge patch.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn merge_patch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        let base = resource.path(namespace, Some(name));
        let path = format!("{base}?fieldManager={FIELD_MANAGER}");
        let answer = self
            .call(Call::patch(
                path.clone(),
                "application/merge-patch+json",
                patch,
            ))
            .await?;
        decode(&path, &answer)
    }

    /// Creates an object; also the way to ask for access reviews. Never repeated.
    ///
    /// # Errors
    /// [`ApiError`]; one that exists is a status 409.
    pub async fn create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let path = resource.path(namespace, None);
        self.post(path, object).await
    }

    /// Creates a subresource of an object, for example the eviction of a pod. Never repeated.
    ///
    /// # Errors
    /// [`ApiError`]; an eviction that a budget does not allow is a status 429.
    pub async fn create_under(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let path = format!("{}/{subresource}", resource.path(namespace, Some(name)));
        self.post(path, object).await
    }

    async fn post(&self, path: String, object: &Value) -> Result<Value, ApiError> {
        let path = format!("{path}?fieldManager={FIELD_MANAGER}");
        let body = Bytes::from(object.to_string());
        let answer = self
            .call(Call {
                method: Method::POST,
                path: path.clone(),
                content: Some(("application/json", body)),
                accept: JSON,
                repeatable: false,
            })
            .await?;
        decode(&path, &answer)
    }

    /// Deletes an object; `false` when there was none.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<bool, ApiError> {
        self.delete_with(resource, namespace, name, &Value::Null)
            .await
    }

    /// Deletes an object with `DeleteOptions`, such as a precondition on its uid; `false` when there was
    /// none.
    ///
    /// # Errors
    /// [`ApiError`]; a precondition that does not hold is a status 409.
    pub async fn delete_with(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        options: &Value,
    ) -> Result<bool, ApiError> {
        let body = (!options.is_null()).then(|| Bytes::from(options.to_string()));
        let call = Call {
            method: Method::DELETE,
            path: resource.path(namespace, Some(name)),
            content: body.map(|body| ("application/json", body)),
            accept: JSON,
            repeatable: true,
        };
        match self.call(call).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The last lines that a pod has written: at most so many, and so many bytes of them.
    ///
    /// # Errors
    /// [`ApiError`]; a pod whose container never started is a status 400.
    pub async fn pod_log(
        &self,
        namespace: &str,
        pod: &str,
        lines: u32,
        bytes: u32,
    ) -> Result<String, ApiError> {
        let of = Resource::POD.path(Some(namespace), Some(pod));
        let path = format!("{of}/log?tailLines={lines}&limitBytes={bytes}");
        let answer = self.call(Call::get(path)).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// What the API server that answers counts, in the text format of Prometheus.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn metrics(&self) -> Result<String, ApiError> {
        let call = Call {
            accept: "text/plain",
            ..Call::get("/metrics".to_owned())
        };
        let answer = self.call(call).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Has an API server ask a port of a Service by `GET`; `path` has no slash in front, and may have a query.
    ///
    /// # Errors
    /// [`ApiError`]; what the Service answers other than a success is a status.
    pub async fn ask_service(&self, service: &ServicePort, path: &str) -> Result<Bytes, ApiError> {
        let of = Resource::SERVICE.path(Some(&service.namespace), Some(&service.proxied()));
        self.call(Call::get(format!("{of}/proxy/{path}"))).await
    }

    async fn call(&self, call: Call) -> Result<Bytes, ApiError> {
        let exchange = tokio::time::timeout(self.deadline, self.exchange(&call)).await;
        let (status, body) = exchange.map_err(|_| ApiError::Deadline {
            method: call.method.clone(),
            path: call.path.clone(),
            after: self.deadline,
        })??;
        if status.is_success() {
            Ok(body)
        } else {
            Err(ApiError::status(&call.method, &call.path, status, &body))
        }
    }

    async fn exchange(&self, call: &Call) -> Result<(StatusCode, Bytes), ApiError> {
        while call.repeatable
            && let Some(mut connection) = self.pooled()
        {
            // A pooled connection may have been closed by the server meanwhile; the next one, or a
            // new one, then does the same call.
            match connection.exchange(self.request(call)?).await {
                Ok(Exchange { status, body }) => {
                    self.keep(connection);
                    return Ok((status, body));
                }
                Err(ApiError::Http { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let stream = self.connector.connect().await.map_err(ApiError::Connect)?;
        let mut connection =
            Connection::open(stream, Arc::clone(&self.tls), self.server_name.clone()).await?;
        let Exchange { status, body } = connection.exchange(self.request(call)?).await?;
        self.keep(connection);
        Ok((status, body))
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, ApiError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, &self.host)
            .header(
                USER_AGENT,
                concat!("windlass-director/", env!("CARGO_PKG_VERSION")),
            )
            .header(ACCEPT, call.accept);
        let body = match &call.content {
            Some((kind, body)) => {
                request = request.header(CONTENT_TYPE, *kind);
                body.clone()
            }
            None => Bytes::new(),
        };
        request.body(Full::new(body)).map_err(|_| ApiError::Object {
            what: format!("{} is not a path", call.path),
        })
    }

    fn pooled(&self) -> Option<Connection> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_open() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }
}

impl Call {
    fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            content: None,
            accept: JSON,
            repeatable: true,
        }
    }

    fn patch(path: String, kind: &'static str, body: &Value) -> Self {
        let content = Some((kind, Bytes::from(body.to_string())));
        Self {
            method: Method::PATCH,
            path,
            content,
            accept: JSON,
            repeatable: true,
        }
    }
}

fn decode<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(answer).map_err(|source| ApiError::Decode {
        path: path.to_owned(),
        source,
    })
}
