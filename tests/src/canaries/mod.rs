//! Secrets of a real cluster as canaries: whatever the director and its machines hold is looked for wherever it must
//! not be (invariant 9). [`known`] finds out what they hold, [`places`] what can be read of processes, logs and the
//! API.
//!
//! # Invariants
//! * A canary is looked for as it is, in hexadecimal digits, and in Base64 at each of the three offsets that it can
//!   have inside of something longer, in either alphabet. Of a private key that is the private part, and each line of
//!   its PEM that has a share of it, again in Base64 as kubeconfigs and Secrets have PEM texts: public keys are no
//!   canaries.
//! * What was found is named, and never shown.
//!
//! # Not here
//! What is compressed, encrypted or cut into pieces shorter than a line: unpack it before. The same for simulated
//! clusters: [`crate::sim`].

mod key;
pub mod known;
pub mod places;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use base64::prelude::{
    BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _,
};
use serde_json::Value;

/// Shortest canary, bytes: 2^128 to one against finding it where it is not.
const BYTES_MIN: usize = 16;
/// Bytes by which the search knows the beginning of a canary.
const START: usize = 8;
/// Pieces in which binary records are looked for, bytes, each this much after the one before: 31 bytes of a record
/// that are somewhere have a whole one among them.
const PIECE: (usize, usize) = (24, 8);

/// Secrets that are looked for.
#[derive(Debug, Default)]
pub struct Canaries {
    /// What each is.
    names: Vec<String>,
    needles: Vec<Needle>,
    /// Needles by their first bytes.
    starts: HashMap<[u8; START], Vec<usize>>,
    /// The same by the first two, which almost nothing passes.
    pairs: BTreeSet<[u8; 2]>,
}

struct Needle {
    bytes: Vec<u8>,
    name: usize,
    form: &'static str,
}

impl fmt::Debug for Needle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "[{} bytes of {}, {}]",
            self.bytes.len(),
            self.name,
            self.form
        )
    }
}

/// A secret where it must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// Where it was found.
    pub place: String,
    /// Which.
    pub secret: String,
    /// How it was written.
    pub form: &'static str,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leak {
            place,
            secret,
            form,
        } = self;
        write!(f, "{place} has {secret}, {form}")
    }
}

impl Canaries {
    /// Names of what is looked for; one whose form nobody knows is not among them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Looks for secret bytes.
    pub fn bytes(&mut self, name: &str, secret: &[u8]) {
        let name = self.name(name);
        self.forms(
            name,
            secret,
            ["as bytes", "in hexadecimal digits", "in Base64"],
        );
    }

    /// Looks for a secret text, and for the bytes that it stands for.
    pub fn text(&mut self, name: &str, secret: &str) {
        let index = self.name(name);
        self.forms(
            index,
            secret.as_bytes(),
            ["as text", "in hexadecimal digits", "in Base64"],
        );
        let decoded = unhex(secret).or_else(|| BASE64_STANDARD.decode(secret).ok());
        if let Some(decoded) = decoded {
            self.forms(
                index,
                &decoded,
                ["as bytes", "in hexadecimal digits", "in Base64"],
            );
        }
    }

    /// Looks for each private key of a PEM text.
    pub fn pem(&mut self, name: &str, text: &str) {
        for found in key::private_keys(text) {
            let index = self.name(name);
            if let Some(private) = found.private() {
                self.forms(
                    index,
                    private,
                    ["as bytes", "in hexadecimal digits", "in Base64"],
                );
            }
            for line in found.private_lines() {
                self.forms(
                    index,
                    line.as_bytes(),
                    ["as PEM", "as PEM in hexadecimal digits", "as PEM in Base64"],
                );
            }
        }
    }

    /// Looks for what is secret in a document: private keys, what its fields call a secret, or, where it is neither
    /// JSON nor PEM, all of it.
    pub fn document(&mut self, name: &str, document: &[u8]) {
        let text = std::str::from_utf8(document).unwrap_or_default();
        match serde_json::from_str::<Value>(text) {
            Ok(value @ (Value::Object(_) | Value::Array(_))) => self.fields(name, &value),
            _ if text.contains("PRIVATE KEY") => self.pem(name, text),
            _ => self.record(name, document),
        }
    }

    fn fields(&mut self, name: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (field, value) in fields {
                    let of = format!("{name}: {field}");
                    match value.as_str() {
                        Some(pem) if pem.contains("PRIVATE KEY") => self.pem(&of, pem),
                        Some(secret) if matches!(field.as_str(), "secret" | "token") => {
                            self.text(&of, secret)
                        }
                        _ => self.fields(&of, value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.fields(name, item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn record(&mut self, name: &str, record: &[u8]) {
        let (length, step) = PIECE;
        let name = self.name(name);
        let last = record.len().saturating_sub(length);
        for at in (0..last).step_by(step).chain([last]) {
            let piece = &record[at..record.len().min(at + length)];
            self.forms(
                name,
                piece,
                ["as bytes", "in hexadecimal digits", "in Base64"],
            );
        }
    }

    fn name(&mut self, name: &str) -> usize {
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    /// One secret as it is, in hexadecimal digits, and in Base64.
    fn forms(&mut self, name: usize, secret: &[u8], [plain, hex, base64]: [&'static str; 3]) {
        self.needle(name, plain, secret.to_vec());
        for upper in [false, true] {
            self.needle(name, hex, to_hex(secret, upper).into_bytes());
        }
        // What is around a secret moves it by none, one or two of the three bytes that make four digits. Digits that
        // depend on the neighbours are left out.
        for skipped in 0..3 {
            let Some(inner) = secret.get(skipped..) else {
                continue;
            };
            let inner = &inner[..inner.len() / 3 * 3];
            for alphabet in [&BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE_NO_PAD] {
                self.needle(name, base64, alphabet.encode(inner).into_bytes());
            }
        }
    }

    fn needle(&mut self, name: usize, form: &'static str, bytes: Vec<u8>) {
        let Some(&start) = bytes
            .first_chunk::<START>()
            .filter(|_| bytes.len() >= BYTES_MIN)
        else {
            return;
        };
        let among = self.starts.entry(start).or_default();
        if among
            .iter()
            .all(|&other| self.needles[other].bytes != bytes)
        {
            among.push(self.needles.len());
            self.needles.push(Needle { bytes, name, form });
            self.pairs.insert([start[0], start[1]]);
        }
    }

    /// Each secret that is in `content`, once.
    pub fn found_in(&self, place: &str, content: &[u8]) -> BTreeSet<Leak> {
        let mut begins = vec![false; 1 << 16];
        for &pair in &self.pairs {
            begins[usize::from(u16::from_be_bytes(pair))] = true;
        }
        let mut found: BTreeMap<usize, &'static str> = BTreeMap::new();
        let mut rest = content;
        while let Some((start, _)) = rest.split_first_chunk::<START>() {
            if begins[usize::from(u16::from_be_bytes([start[0], start[1]]))] {
                let here = self.starts.get(start).into_iter().flatten();
                for needle in here.map(|&index| &self.needles[index]) {
                    if rest.starts_with(&needle.bytes) {
                        found.entry(needle.name).or_insert(needle.form);
                    }
                }
            }
            rest = &rest[1..];
        }
        let leak = |(name, form): (usize, &'static str)| Leak {
            place: place.to_owned(),
            secret: self.names[name].clone(),
            form,
        };
        found.into_iter().map(leak).collect()
    }
}

fn to_hex(bytes: &[u8], upper: bool) -> String {
    let digit = |byte: &u8| {
        if upper {
            format!("{byte:02X}")
        } else {
            format!("{byte:02x}")
        }
    };
    bytes.iter().map(digit).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pairs = || {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
    };
    digits.then(pairs)?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = *b"\xfb\xef\xbe12345678901234567890123456789";

    fn pem() -> String {
        rcgen::KeyPair::generate().unwrap().serialize_pem()
    }

    #[test]
    fn a_secret_is_found_in_every_form_at_every_offset() {
        let mut canaries = Canaries::default();
        canaries.bytes("the key", &SECRET);
        let mut forms: Vec<Vec<u8>> = vec![
            SECRET.to_vec(),
            to_hex(&SECRET, false).into_bytes(),
            to_hex(&SECRET, true).into_bytes(),
        ];
        for before in 0..6 {
            let around = [&vec![b'a'; before][..], &SECRET, b"behind"].concat();
            forms.push(BASE64_STANDARD.encode(&around).into_bytes());
            forms.push(BASE64_URL_SAFE_NO_PAD.encode(&around).into_bytes());
        }
        for form in forms {
            let place = [b"key=", &form[..], b"\n"].concat();
            let found = canaries.found_in("a log", &place);
            assert_eq!(found.len(), 1, "{}", String::from_utf8_lossy(&place));
            let said = found.first().unwrap().to_string();
            assert!(said.starts_with("a log has the key, "), "{said}");
        }
        let mut other = SECRET;
        other[9] ^= 1;
        assert!(canaries.found_in("a log", &other).is_empty());
        assert!(canaries.found_in("a log", &SECRET[..31]).is_empty());
        assert!(canaries.found_in("a log", b"").is_empty());
    }

    #[test]
    fn a_private_key_is_found_and_its_public_part_is_none() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let text = pair.serialize_pem();
        let mut canaries = Canaries::default();
        canaries.pem("a CA", &text);
        let found = |content: &[u8]| !canaries.found_in("here", content).is_empty();
        assert!(found(text.as_bytes()), "PEM");
        assert!(found(text.replace('\n', "\\n").as_bytes()), "PEM in JSON");
        assert!(found(text.replace('\n', "").as_bytes()), "PEM in one line");
        assert!(found(&pair.serialize_der()), "DER");
        let body: Vec<&str> = text.lines().collect();
        assert!(
            found(body[1].as_bytes()) && found(body[2].as_bytes()),
            "a line of it"
        );
        for before in ["", "a", "ab"] {
            let config = BASE64_STANDARD.encode(format!("{before}{text}"));
            assert!(found(config.as_bytes()), "a kubeconfig");
            assert!(found(
                BASE64_STANDARD
                    .encode([before.as_bytes(), &pair.serialize_der()].concat())
                    .as_bytes()
            ));
        }
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&pair)
            .unwrap();
        assert!(!found(certificate.pem().as_bytes()), "a certificate");
        assert!(!found(certificate.der()), "a certificate");
        assert!(!found(pair.public_key_raw()), "a public key");
        assert!(!found(pair.public_key_pem().as_bytes()), "a public key");
        assert!(!found(pem().as_bytes()), "another key");
    }

    #[test]
    fn documents_give_up_what_is_secret_in_them() {
        let key = pem();
        let token = "0123456789abcdef".repeat(4);
        let encryption = BASE64_STANDARD.encode(SECRET);
        let document = serde_json::json!({
            "authority": {"key": key, "certificate": "public, and long enough to be looked for"},
            "keys": [{"name": "public, and long enough as well", "secret": encryption}],
            "token": token,
        });
        let mut canaries = Canaries::default();
        canaries.document("stored", document.to_string().as_bytes());
        assert_eq!(canaries.names().len(), 3, "{:?}", canaries.names());
        for leaked in [
            key.as_bytes(),
            token.as_bytes(),
            encryption.as_bytes(),
            &SECRET,
        ] {
            assert_eq!(canaries.found_in("here", leaked).len(), 1);
        }
        let all = b"public, and long enough to be looked for public, and long enough as well";
        assert!(canaries.found_in("here", all).is_empty());
        // A record that is neither: 31 bytes of it are enough.
        let record: Vec<u8> = (0..=90).collect();
        let mut canaries = Canaries::default();
        canaries.document("tickets", &record);
        for at in 0..=record.len() - 31 {
            assert_eq!(
                canaries.found_in("here", &record[at..at + 31]).len(),
                1,
                "{at}"
            );
        }
    }
}
