//! A real object store on loopback for backups.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::world::required;

const BUCKET: &str = "vault";
const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// `s3s-fs` with one bucket; gone when this is dropped.
#[derive(Debug)]
pub struct Store {
    root: tempfile::TempDir,
    address: SocketAddr,
    process: Child,
}

impl Store {
    /// Starts one.
    pub fn start() -> Result<Store> {
        let program = required("WINDLASS_TEST_S3")?;
        let root = tempfile::tempdir().context("cannot make a directory")?;
        std::fs::create_dir_all(root.path().join("data").join(BUCKET))?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(root.path().join("credentials"))?;
        writeln!(
            file,
            "[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}"
        )?;
        let mut process = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(root.path().join("data"))
            .env("RUST_LOG", "s3s_fs=info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = process.stdout.take().context("it has an output")?;
        let mut lines = BufReader::new(output).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("http://")?.1.trim().parse().ok());
        // It goes on writing, and is not to wait for a reader; this ends with it.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Store {
            root,
            address: address.context("s3s-fs ended before it listened")?,
            process,
        })
    }

    /// The section of `director.toml` that names it.
    pub fn section(&self) -> String {
        format!(
            "\n[backup.s3]\nendpoint = \"http://{}\"\nbucket = \"{BUCKET}\"\nprefix = \"e2e\"\ncredentials = \"{}\"\n",
            self.address,
            self.root.path().join("credentials").display()
        )
    }

    /// Where its objects are, as files.
    pub fn files(&self) -> PathBuf {
        self.root.path().join("data").join(BUCKET).join("e2e")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // One that has ended by itself shows in what it was needed for.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
