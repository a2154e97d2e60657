//! What a director and its machines hold that nobody else may see, read as root of their host can.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use windlass_common::settings::{SETTINGS_PATH, Settings};
use windlass_director::config::DataDir;
use windlass_director::store::{Kind, Records, Sealer, Sqlite, Store, snapshot};

use super::Canaries;
use super::places::{Place, files};
use crate::host;

/// Largest file in which keys are looked for, bytes.
const KEY_FILE_MAX: usize = 256 << 10;
/// Directories of a machine with keys, tokens and what has them in it.
const DIRECTORIES: [&str; 4] = [
    "etc/kubernetes",
    "etc/windlass",
    "var/lib/windlass",
    "var/lib/kubelet",
];

impl Canaries {
    /// Learns what the director of this data directory holds: each secret of its store, which it may be writing to,
    /// what seals them, its own and its operators' private keys, and those of kubeconfigs beside them.
    pub fn of_director(&mut self, directory: &Path) -> Result<()> {
        let dir = DataDir::new(directory)?;
        let seal =
            std::fs::read_to_string(dir.seal_key()).context("cannot read what seals secrets")?;
        let key = seal.lines().last();
        let key = key.context("what seals secrets is empty")?;
        self.text("the key that seals secrets", key);
        for (name, secret) in stored(&dir)? {
            let before = self.names().len();
            self.document(&format!("the stored secret {name}"), &secret);
            ensure!(
                self.names().len() > before,
                "nothing of the stored secret {name} is looked for"
            );
        }
        let machines = dir.provider();
        let own = files(directory, |path| {
            path != machines && path != dir.artifacts()
        });
        for Place { name, content } in own.iter().filter(|file| file.content.len() <= KEY_FILE_MAX)
        {
            self.keys_of(name, &String::from_utf8_lossy(content));
        }
        Ok(())
    }

    /// Learns what a machine on this host holds: its private keys, tokens, and keys for encryption.
    pub fn of_machine(&mut self, machine: &str) -> Result<()> {
        let root = root_of(machine)?;
        let settings = root.join(SETTINGS_PATH.trim_start_matches('/'));
        let settings: Settings = serde_json::from_slice(&std::fs::read(&settings)?)
            .with_context(|| format!("{} is no settings of a machine", settings.display()))?;
        self.text(&format!("the token of {machine}"), settings.token.expose());
        let before = self.names().len();
        for directory in DIRECTORIES {
            for Place { name, content } in files(&root.join(directory), |_| true) {
                if content.len() <= KEY_FILE_MAX {
                    let short = name.trim_start_matches(&*root.to_string_lossy());
                    self.keys_of(
                        &format!("{short} of {machine}"),
                        &String::from_utf8_lossy(&content),
                    );
                }
            }
        }
        ensure!(
            self.names().len() > before,
            "{machine} has no key of its own"
        );
        Ok(())
    }

    /// Private keys, tokens of service accounts, the keys of a kubeconfig, and those with which Secrets are encrypted.
    fn keys_of(&mut self, file: &str, text: &str) {
        self.pem(file, text);
        for word in text.split(|c: char| c.is_whitespace() || "\"',{}".contains(c)) {
            let is_token = word.starts_with("eyJ") && word.split('.').count() == 3;
            if is_token {
                self.text(&format!("a token in {file}"), word);
            }
            if word.starts_with("AGE-SECRET-KEY-") {
                self.text(&format!("the key of backups in {file}"), word);
            }
        }
        for line in text.lines() {
            let Some((field, value)) = line.trim_start_matches([' ', '-']).split_once(':') else {
                continue;
            };
            let value = value.trim().trim_matches(['"', ',']);
            match field.trim_matches('"') {
                "client-key-data" => {
                    let key = BASE64_STANDARD.decode(value).unwrap_or_default();
                    self.pem(file, &String::from_utf8_lossy(&key));
                }
                "secret" => self.text(&format!("a key in {file}"), value),
                _ => {}
            }
        }
    }
}

/// The root directory of a machine on this host, as its own processes see it.
pub fn root_of(machine: &str) -> Result<PathBuf> {
    let kubelets = host::machine_processes(machine, "kubelet")?;
    let kubelet = kubelets
        .first()
        .with_context(|| format!("{machine} runs no kubelet"))?;
    Ok(PathBuf::from(format!("/proc/{kubelet}/root")))
}

/// Each secret of a director's store, by name; of a copy, since the store is in use.
fn stored(dir: &DataDir) -> Result<Vec<(String, Vec<u8>)>> {
    let copy = tempfile::tempdir().context("cannot make a directory")?;
    let copy = copy.path().join("store");
    snapshot(&dir.store(), &copy).context("cannot copy the store")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let store = Arc::new(Sqlite::open(&copy)?);
        let names = store
            .list(Kind::Secret, "")
            .await?
            .into_iter()
            .map(|entry| entry.name);
        let names: Vec<String> = names.collect();
        let records = Records::new(store, Sealer::load(&dir.seal_key())?).await?;
        let mut secrets = Vec::new();
        for name in names {
            let secret = records
                .secret(&name)
                .await?
                .context("listed a moment ago")?;
            secrets.push((name, secret.to_vec()));
        }
        ensure!(!secrets.is_empty(), "the store has no secret");
        Ok(secrets)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_machines_give_up_their_keys() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.c2lnbmVkLWJ5LXNvbWVib2R5";
        let kubeconfig = format!(
            "users:\n- user:\n    client-key-data: {}\n",
            BASE64_STANDARD.encode(&key)
        );
        let encryption = format!(
            "keys:\n- name: key1\n  secret: {}\n",
            BASE64_STANDARD.encode([7; 32])
        );
        for (text, leaked) in [
            (key.as_str(), key.as_str()),
            (&format!("token: {token}\n"), token),
            (&kubeconfig, &key),
            (&encryption, &BASE64_STANDARD.encode([7; 32])),
        ] {
            let mut canaries = Canaries::default();
            canaries.keys_of("a file", text);
            assert_eq!(canaries.names().len(), 1, "{text}");
            assert_eq!(
                canaries.found_in("here", leaked.as_bytes()).len(),
                1,
                "{text}"
            );
        }
        let mut canaries = Canaries::default();
        canaries.keys_of(
            "a file",
            "apiVersion: v1\nclient-certificate-data: eyJub3RoaW5n\n",
        );
        assert!(canaries.names().is_empty());
    }
}
