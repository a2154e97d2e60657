//! A real S3 server on loopback, and what stands between it and the director.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

pub(crate) const BUCKET: &str = "vault";
const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// `s3s-fs` with one bucket, whose objects are files below [`Server::bucket`].
pub(crate) struct Server {
    program: PathBuf,
    /// Its data, the file with the key, certificates.
    pub(crate) root: TempDir,
    pub(crate) address: SocketAddr,
    process: Option<Child>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let program = std::env::var_os("WINDLASS_TEST_S3").unwrap_or_else(|| {
            panic!(
                "WINDLASS_TEST_S3 is not set; it names the program s3s-fs, which `cargo xtask test crates` installs \
                 and `cargo install --locked --features binary s3s-fs@0.14.1` makes"
            )
        });
        let program = PathBuf::from(program);
        assert!(
            program.is_file(),
            "WINDLASS_TEST_S3 names no file: {}",
            program.display()
        );
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("data").join(BUCKET)).unwrap();
        let mut server = Self {
            program,
            root,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            process: None,
        };
        server.write_key(KEY, SECRET);
        server.run();
        server
    }

    /// Starts it, at the address it had if it ran before.
    pub(crate) fn run(&mut self) {
        let mut process = Command::new(&self.program)
            .args(["--host", "127.0.0.1", "--port"])
            .arg(self.address.port().to_string())
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(self.root.path().join("data"))
            .env("RUST_LOG", "s3s_fs=info")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| Some(line.split_once("http://")?.1.trim().parse().unwrap()));
        self.address = address.expect("s3s-fs ended before it listened");
        // It has to go on reading, or the server blocks; it ends with the server.
        std::thread::spawn(move || lines.for_each(drop));
        self.process = Some(process);
    }

    /// Ends it without a farewell.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The directory with the bucket's objects.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.root.path().join("data").join(BUCKET)
    }

    /// Names of the objects, in order.
    pub(crate) fn objects(&self) -> Vec<String> {
        let (mut found, mut left) = (Vec::new(), vec![self.bucket()]);
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => left.push(path),
                    false => {
                        let name = path.strip_prefix(self.bucket()).unwrap();
                        found.push(name.to_str().unwrap().to_owned());
                    }
                }
            }
        }
        found.sort();
        found
    }

    /// How many parts of unfinished uploads it keeps.
    pub(crate) fn parts(&self) -> usize {
        let files = std::fs::read_dir(self.root.path().join("data")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".part-")).count()
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.root.path().join("s3.credentials")
    }

    pub(crate) fn write_key(&self, key: &str, secret: &str) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.credentials())
            .unwrap();
        writeln!(
            file,
            "[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}"
        )
        .unwrap();
        let mode = std::fs::Permissions::from_mode(0o600);
        file.set_permissions(mode).unwrap();
    }

    /// Gives it the right key again.
    pub(crate) fn mend_key(&self) {
        self.write_key(KEY, SECRET);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a [`Proxy`] does to what the director sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The byte with this number, of all connections together, arrives with other bits.
    Flip(u64),
    /// From that byte on nothing is passed on, and whoever waits is told.
    Stop(u64),
}

/// Ends TLS in front of a server, as stores' load balancers do.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    /// Its certificate, as PEM.
    pub(crate) ca_file: PathBuf,
    /// Told once the bytes of [`Fault::Stop`] have come.
    pub(crate) reached: Arc<Notify>,
}

impl Proxy {
    pub(crate) async fn start(directory: &Path, server: SocketAddr, fault: Fault) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let ca_file = directory.join("ca.pem");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::from(key))
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reached = Arc::new(Notify::new());
        let (tell, passed) = (reached.clone(), Arc::new(AtomicU64::new(0)));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, tell, passed) = (acceptor.clone(), tell.clone(), passed.clone());
                tokio::spawn(async move {
                    // Whoever does not trust it goes away; a server that is dead is not reached.
                    let Ok(client) = acceptor.accept(stream).await else {
                        return;
                    };
                    let Ok(server) = TcpStream::connect(server).await else {
                        return;
                    };
                    let (mut from_client, mut to_client) = tokio::io::split(client);
                    let (mut from_server, mut to_server) = server.into_split();
                    let back = tokio::io::copy(&mut from_server, &mut to_client);
                    let forth = async {
                        let mut piece = vec![0; 64 << 10];
                        loop {
                            let count = from_client.read(&mut piece).await?;
                            if count == 0 {
                                return to_server.shutdown().await;
                            }
                            let before = passed.fetch_add(count as u64, Ordering::SeqCst);
                            let after = before + count as u64;
                            match fault {
                                Fault::Flip(at) if (before..after).contains(&at) => {
                                    piece[usize::try_from(at - before).unwrap()] ^= 0x55;
                                }
                                Fault::Stop(at) if (before..after).contains(&at) => {
                                    tell.notify_one();
                                    return std::future::pending().await;
                                }
                                Fault::None | Fault::Flip(_) | Fault::Stop(_) => {}
                            }
                            to_server.write_all(&piece[..count]).await?;
                        }
                    };
                    // Either direction's end is the connection's.
                    tokio::select! {
                        _ = back => {}
                        _ = forth => {}
                    }
                });
            }
        });
        Self {
            endpoint: format!("https://localhost:{port}"),
            ca_file,
            reached,
        }
    }
}
