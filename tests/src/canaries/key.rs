//! The private part of a private key, and where it is in its PEM text.

use std::ops::Range;

use base64::prelude::{BASE64_STANDARD, Engine as _};

/// Bytes of DER in one line of PEM.
const LINE_BYTES: usize = 48;
/// Bytes of the private part that a line has to have to be secret: 64 bits nobody guesses by chance.
const SHARE_MIN: usize = 8;

/// A private key in PEM.
pub(super) struct PrivateKey<'a> {
    lines: Vec<&'a str>,
    der: Vec<u8>,
    /// Where in the DER the private part is; `None` in a format that is not understood, of which all is secret.
    private: Option<Range<usize>>,
}

/// The private keys of a text.
pub(super) fn private_keys(text: &str) -> Vec<PrivateKey<'_>> {
    let mut keys = Vec::new();
    let mut body: Option<Vec<&str>> = None;
    for line in text.lines().map(str::trim) {
        if line.starts_with("-----BEGIN ") {
            body = line.contains("PRIVATE KEY").then(Vec::new);
        } else if line.starts_with("-----END ") {
            let lines = body.take().filter(|lines| !lines.is_empty());
            keys.extend(lines.map(PrivateKey::new));
        } else if let Some(body) = &mut body {
            body.push(line);
        }
    }
    keys
}

impl<'a> PrivateKey<'a> {
    fn new(lines: Vec<&'a str>) -> Self {
        let der = BASE64_STANDARD.decode(lines.concat()).unwrap_or_default();
        let private = private_part(&der);
        Self {
            lines,
            der,
            private,
        }
    }

    /// The private part: the scalar of an ECDSA key, the seed of an Ed25519 key.
    pub(super) fn private(&self) -> Option<&[u8]> {
        self.der.get(self.private.clone()?)
    }

    /// Lines that nobody may see.
    pub(super) fn private_lines(&self) -> impl Iterator<Item = &'a str> + '_ {
        let secret = |(number, _): &(usize, &&str)| {
            let Some(private) = &self.private else {
                return true;
            };
            let start = private.start.max(number * LINE_BYTES);
            let end = private.end.min((number + 1) * LINE_BYTES);
            end.saturating_sub(start) >= SHARE_MIN
        };
        self.lines
            .iter()
            .enumerate()
            .filter(secret)
            .map(|(_, line)| *line)
    }
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Where the private part of a key is: PKCS#8 (RFC 5958) of ECDSA and Ed25519, or ECDSA's own format (RFC 5915).
fn private_part(der: &[u8]) -> Option<Range<usize>> {
    let fields = expect(der, 0, SEQUENCE)?;
    let version = expect(der, fields.start, INTEGER)?;
    let second = element(der, version.end)?;
    if second.0 == OCTET_STRING {
        return Some(second.1);
    }
    let inner = expect(der, second.1.end, OCTET_STRING)?;
    match element(der, inner.start)? {
        (OCTET_STRING, seed) => Some(seed),
        (SEQUENCE, fields) => {
            let version = expect(der, fields.start, INTEGER)?;
            expect(der, version.end, OCTET_STRING)
        }
        _ => None,
    }
}

fn expect(der: &[u8], at: usize, tag: u8) -> Option<Range<usize>> {
    element(der, at)
        .filter(|found| found.0 == tag)
        .map(|found| found.1)
}

/// Tag and content of the element that begins at `at`, which has to be whole.
fn element(der: &[u8], at: usize) -> Option<(u8, Range<usize>)> {
    let (&tag, &first) = (der.get(at)?, der.get(at + 1)?);
    let (length, start) = match first {
        0..=0x7f => (usize::from(first), at + 2),
        0x81..=0x83 => {
            let count = usize::from(first - 0x80);
            let digits = der.get(at + 2..at + 2 + count)?;
            let length = digits
                .iter()
                .fold(0, |sum, &digit| sum << 8 | usize::from(digit));
            (length, at + 2 + count)
        }
        _ => return None,
    };
    let content = start..start + length;
    (content.end <= der.len()).then_some((tag, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private(pem: &str) -> Vec<u8> {
        let keys = private_keys(pem);
        assert_eq!(keys.len(), 1, "{pem}");
        keys[0].private().unwrap().to_vec()
    }

    #[test]
    fn the_private_part_is_told_from_the_rest() {
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let found = private(&pair.serialize_pem());
            assert_eq!(found.len(), 32);
            let public = pair.public_key_raw();
            assert!(
                !public
                    .windows(8)
                    .any(|part| found.windows(8).any(|own| own == part))
            );
        }
        // RFC 5915, as `openssl ecparam -genkey` writes it, after a block that is no key.
        let own = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n\
            -----BEGIN EC PRIVATE KEY-----\n\
            MDECAQEEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4foAoGCCqGSM49\nAwEH\n\
            -----END EC PRIVATE KEY-----\n";
        assert_eq!(private(own), (0..32).collect::<Vec<u8>>());
    }

    #[test]
    fn of_what_is_not_understood_all_is_secret() {
        let strange = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nAAAAAAAAAAAA\n\
            -----END OPENSSH PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let keys = private_keys(strange);
        assert_eq!(keys.len(), 1);
        assert!(keys[0].private().is_none());
        assert_eq!(keys[0].private_lines().count(), 2);
        assert!(
            private_keys("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n").is_empty()
        );
        for der in [
            &[][..],
            &[0x30],
            &[0x30, 0x84, 1, 1, 1, 1],
            &[0x30, 0x7f, 2, 1, 0],
        ] {
            assert_eq!(private_part(der), None);
        }
    }
}
