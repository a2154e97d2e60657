//! One director with its API on a free port, and its friends and strangers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use windlass_common::clock::Clock;
use windlass_common::id::{
    ClusterName, Digest, DirectorId, Incarnation, MachineName, OperatorName,
};
use windlass_common::pki::{MachineIdentity, PrivateKey, pem};
use windlass_common::stemcell::{
    self, FileSet, Image, Inputs, MANIFEST_FORMAT, Manifest, PublicKey, Rootfs,
};
use windlass_director::api::{AddOperator, AddedOperator, Server, server_tls};
use windlass_director::client::{Client, ClientError, Context, ContextFile, Lines};
use windlass_director::config::{Config, DataDir, Identity, InitRequest, init};
use windlass_director::model::{Operator, Role};
use windlass_director::pki::{DirectorCa, ServerDoor};
use windlass_director::provider::Provider;
use windlass_director::provider::local::{LocalConfig, LocalProvider};
use windlass_director::service::Director;
use windlass_director::store::{Commit, DirectoryLock};

/// Kubernetes version of the only stemcell.
pub(crate) const KUBERNETES: &str = "1.37.2";
/// Name of the operator.
pub(crate) const OPERATOR: &str = "tester";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A director that serves its API.
pub(crate) struct Rig {
    pub(crate) client: Client,
    pub(crate) config: Config,
    address: SocketAddr,
    ca: Arc<DirectorCa>,
    dir: tempfile::TempDir,
    director: Director,
    pub(crate) provider: LocalProvider,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    _lock: DirectoryLock,
}

/// Somebody who is not an operator of this director.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stranger {
    /// An operator of another director.
    OtherCa,
    /// A machine of this director.
    Agent,
}

/// Of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    WithoutOperators,
}

impl Rig {
    pub(crate) async fn start() -> Rig {
        Rig::start_in(Age::New).await
    }

    /// In a data directory of before operators had records.
    pub(crate) async fn start_older() -> Rig {
        Rig::start_in(Age::WithoutOperators).await
    }

    async fn start_in(age: Age) -> Rig {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let data = DataDir::new(&dir.path().join("data")).unwrap();
        let stemcells = dir.path().join("stemcells");
        make_stemcell(&stemcells);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let request = InitRequest {
            name: Some(format!("api{number}")),
            cidr: Some(format!("10.93.{number}.0/24").parse().unwrap()),
            api: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
            gateway: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
            stemcells: Some(stemcells),
            trusted_keys: None,
            operator: Some(OPERATOR.to_owned()),
        };
        init(&data, request).await.unwrap();
        let mut config = Config::load(&data).unwrap();
        // Whatever is free; a file cannot say that.
        config.gateway.listen.set_port(0);
        let lock = DirectoryLock::acquire(data.path()).unwrap();
        let identity = Identity::load(&data, Timestamp::now()).await.unwrap();
        if age == Age::WithoutOperators {
            let records = &identity.records;
            let first: Option<Operator> = records.get(OPERATOR).await.unwrap();
            let mut commit = Commit::default();
            commit.delete(&first.unwrap());
            records.commit(commit).await.unwrap();
        }
        let (ca, id) = (identity.ca.clone(), identity.id.clone());
        let localhost = [std::net::Ipv4Addr::LOCALHOST.into()];
        let life = Duration::from_secs(3600);
        let door = ServerDoor::new(
            ca.clone(),
            Vec::new(),
            localhost.to_vec(),
            life,
            Clock::system(),
        );
        let tls = server_tls(door.unwrap(), ca.operator_verifier().unwrap()).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind(any, tls, id).await.unwrap();
        let address = server.local_address().unwrap();
        let provider = LocalProvider::new(LocalConfig {
            dir: data.provider(),
            name: config.local.name.clone(),
            cidr: config.local.cidr,
            director_exe: PathBuf::from(env!("CARGO_BIN_EXE_windlass-director")),
            runc: config.local.runc.clone(),
            zones: Vec::new(),
        })
        .unwrap();
        let director = Director::start(&lock, &data, &config, identity, Arc::new(provider.clone()))
            .await
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        let serving =
            tokio::spawn(server.serve(director.clone(), config.reserved_networks(), stopped));
        let file = ContextFile {
            url: format!("https://{address}"),
            ca: data.operator().join("ca.crt"),
            certificate: data.operator().join(format!("{OPERATOR}.crt")),
            key: data.operator().join(format!("{OPERATOR}.key")),
        };
        let client = Client::new(Context::new(&file, &data.context()).unwrap());
        Rig {
            client,
            config,
            address,
            ca,
            dir,
            director,
            provider,
            stop,
            serving,
            _lock: lock,
        }
    }

    /// Adds an operator; a client that is it.
    pub(crate) async fn operator(&self, name: &str, role: Role) -> Result<Client, ClientError> {
        let key = PrivateKey::generate().unwrap();
        let order = AddOperator {
            name: name.to_owned(),
            role,
            request: STANDARD.encode(key.request().unwrap()),
        };
        let order = serde_json::to_string(&order).unwrap();
        let answer = self.client.post("/v1/operators", order).await?;
        let added: AddedOperator = self.client.typed(&answer)?;
        let certificate = added.certificate.as_bytes();
        Ok(self.client_with(&added.ca, certificate, key.to_pem().expose()))
    }

    /// A context file of the operator.
    pub(crate) fn context(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        let path = data.join("test-context.toml");
        let file = ContextFile {
            url: format!("https://{}", self.address),
            ca: "operator/ca.crt".into(),
            certificate: format!("operator/{OPERATOR}.crt").into(),
            key: format!("operator/{OPERATOR}.key").into(),
        };
        std::fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        path
    }

    /// Stops the API and the director, and removes what the provider made.
    pub(crate) async fn end(self) {
        self.stop.send_replace(true);
        self.serving.await.unwrap();
        self.director.shutdown().await;
        self.provider.reset().await.unwrap();
    }

    /// A client with a certificate that is not an operator's of this director, who believes this one.
    pub(crate) fn stranger(&self, stranger: Stranger) -> Client {
        let (now, life) = (Timestamp::now(), Duration::from_secs(3600));
        let (certificate, key) = match stranger {
            Stranger::OtherCa => {
                let credentials = other_ca()
                    .issue_operator(OperatorName::new(OPERATOR).unwrap(), life, now)
                    .unwrap();
                (credentials.certificate_pem, credentials.key_pem)
            }
            Stranger::Agent => {
                let key = PrivateKey::generate().unwrap();
                let identity = MachineIdentity {
                    director: self.ca.director().clone(),
                    cluster: ClusterName::new("demo").unwrap(),
                    machine: MachineName::new("demo-cp-0").unwrap(),
                    incarnation: Incarnation::FIRST,
                };
                let chain = self
                    .ca
                    .issue_agent(&key.request().unwrap(), &identity, life, now)
                    .unwrap();
                (chain.to_pem(), key.to_pem())
            }
        };
        self.client_with(&self.ca.root_pem(), certificate.as_bytes(), key.expose())
    }

    /// This director's operator, who believes another director.
    pub(crate) fn client_of_other_director(&self) -> Client {
        let operator = OperatorName::new(OPERATOR).unwrap();
        let credentials = self
            .ca
            .issue_operator(operator, Duration::from_secs(3600), Timestamp::now())
            .unwrap();
        self.client_with(
            &other_ca().root_pem(),
            credentials.certificate_pem.as_bytes(),
            credentials.key_pem.expose(),
        )
    }

    fn client_with(&self, ca: &str, certificate: &[u8], key: &[u8]) -> Client {
        let dir = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let file = ContextFile {
            url: format!("https://{}", self.address),
            ca: write("ca", ca.as_bytes()),
            certificate: write("certificate", certificate),
            key: write("key", key),
        };
        Client::new(Context::new(&file, &dir.join("context.toml")).unwrap())
    }

    /// What a path answers that is no JSON.
    pub(crate) async fn text(&self, path: &str) -> String {
        let mut lines = self
            .client
            .lines(hyper::Method::GET, path, None, &[])
            .await
            .unwrap();
        let mut text = String::new();
        while let Some(line) = lines.next().await.unwrap() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// How an operator ends whose client knows nothing newer than TLS 1.2.
    pub(crate) async fn speaking_tls12(&self) -> std::io::Error {
        let operator = OperatorName::new(OPERATOR).unwrap();
        let life = Duration::from_secs(3600);
        let issued = self.ca.issue_operator(operator, life, Timestamp::now());
        let issued = issued.unwrap();
        let chain = pem::certificates(issued.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKey::from_pem(&issued.key_pem).unwrap().to_der();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.root_der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        connecting.await.expect_err("TLS 1.2 is not served")
    }

    /// What a client without any certificate is told: status and body.
    pub(crate) async fn without_certificate(&self, path: &str) -> (u16, Value) {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.root_der().clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(windlass_common::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "x")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        (status, serde_json::from_slice(&body).unwrap())
    }
}

fn other_ca() -> DirectorCa {
    DirectorCa::create(DirectorId::new("dother").unwrap(), Timestamp::now()).unwrap()
}

/// A server-sent event.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// The next event of a stream; comments are passed over.
pub(crate) async fn event(lines: &mut Lines) -> Result<Option<Sent>, ClientError> {
    let (mut name, mut id, mut data) = (String::new(), None, String::new());
    while let Some(line) = lines.next().await? {
        match line.split_once(':') {
            Some(("event", text)) => name = text.trim().to_owned(),
            Some(("id", text)) => id = Some(text.trim().to_owned()),
            Some(("data", text)) => data.push_str(text.trim_start()),
            None if !data.is_empty() => {
                let data = serde_json::from_str(&data).unwrap();
                return Ok(Some(Sent { name, id, data }));
            }
            Some(_) | None => {}
        }
    }
    Ok(None)
}

/// A stemcell that verifies and cannot boot, signed with a key of its own.
fn make_stemcell(root: &Path) {
    let set = |bytes: &[u8]| FileSet {
        digest: Digest::of(bytes),
        bytes: bytes.len() as u64,
    };
    let image = |name: &str| Image {
        name: format!("registry.windlass.internal/{name}:1"),
        digest: Digest::of(name.as_bytes()),
        bytes: 1,
        components: Vec::new(),
    };
    let manifest = Manifest {
        format: MANIFEST_FORMAT,
        name: "none".to_owned(),
        version: format!("{KUBERNETES}-0000000000"),
        kubernetes: KUBERNETES.to_owned(),
        architecture: "amd64".to_owned(),
        built_at: "2030-01-31T12:00:00Z".to_owned(),
        builder: "test".to_owned(),
        inputs: Inputs {
            digest: Digest::of(b"inputs"),
            recipe: Digest::of(b"recipe"),
            components: Digest::of(b"components"),
            agent: None,
        },
        components: Vec::new(),
        images: ["coredns", "pause"].map(image).into(),
        seeds: Vec::new(),
        units: Vec::new(),
        exports: Vec::new(),
        packages: Vec::new(),
        rootfs: Rootfs {
            files: set(b""),
            entries: 0,
            bytes: 0,
        },
        sbom: set(b"{}"),
    };
    let dir = root.join(manifest.id());
    std::fs::create_dir_all(dir.join(stemcell::ROOTFS)).unwrap();
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let pair = Ed25519KeyPair::generate().unwrap();
    let public = PublicKey::from_bytes(pair.public_key().as_ref().try_into().unwrap());
    let signature = STANDARD.encode(pair.sign(&stemcell::signed_message(&bytes)).as_ref());
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
    write(stemcell::MANIFEST, &bytes);
    write(
        stemcell::SIGNATURE,
        format!("{public} {signature}\n").as_bytes(),
    );
    write(stemcell::FILES, b"");
    write(stemcell::SBOM, b"{}");
    std::fs::write(root.join(stemcell::TRUSTED), format!("{public}\n")).unwrap();
}
