//! A diagnostics bundle: a gzipped tar that is written as its parts come, and blots secrets out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Longest part, bytes: 10 000 lines of a journal are about 2 MiB.
pub(crate) const PART_BYTES_MAX: usize = 16 << 20;
/// Longest bundle before compression: 64 machines with 10 parts of the usual length are a fifth of it.
pub(crate) const BUNDLE_BYTES_MAX: usize = 1 << 30;
/// Block of a tar.
const BLOCK: usize = 512;
/// Lines of the longest private key, RSA with 8192 bits: a key whose end is missing takes no more with it.
const KEY_LINES_MAX: usize = 100;
/// What stands where something was blotted out.
const BLOT: &str = "[redacted]";
/// Words before a secret, in any case; what follows behind `=`, `:` or a space goes.
const NAMES: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "bearer",
    "api_key",
    "apikey",
    "client-key-data",
];

/// A bundle that is being written.
pub(crate) struct Bundle {
    gzip: GzEncoder<File>,
    modified_s: u64,
    bytes: usize,
}

impl Bundle {
    /// Makes the file, which must not be there, for its owner alone.
    pub(crate) fn create(path: &Path, modified_s: u64) -> io::Result<Bundle> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        Ok(Bundle {
            gzip: GzEncoder::new(file, Compression::default()),
            modified_s,
            bytes: 0,
        })
    }

    /// Adds a text. What is too long loses its beginning: the newest lines are at the end.
    pub(crate) fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut text = redact(text);
        if text.len() > PART_BYTES_MAX {
            let mut start = text.len() - PART_BYTES_MAX;
            while !text.is_char_boundary(start) {
                start += 1;
            }
            text = format!(
                "[{start} bytes before this were left out]\n{}",
                &text[start..]
            );
        }
        if self.bytes + text.len() > BUNDLE_BYTES_MAX {
            text = "[left out: the bundle has reached its limit]\n".to_owned();
        }
        self.bytes += text.len();
        self.gzip
            .write_all(&header(name, text.len(), self.modified_s))?;
        self.gzip.write_all(text.as_bytes())?;
        let padding = text.len().next_multiple_of(BLOCK) - text.len();
        self.gzip.write_all(&[0; BLOCK][..padding])
    }

    /// Writes the end, to the disk.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.gzip.write_all(&[0; 2 * BLOCK])?;
        self.gzip.finish()?.sync_all()
    }
}

/// The header of a file in a tar (POSIX ustar). A name is at most 100 bytes; a longer one is cut.
fn header(name: &str, bytes: usize, modified_s: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    let mut end = name.len().min(100);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    put(0, &name.as_bytes()[..end]);
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{bytes:011o}\0").as_bytes());
    put(136, format!("{modified_s:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Blots out private keys in PEM, and what follows the name of a secret.
pub(crate) fn redact(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut of_key = 0;
    for line in text.split_inclusive('\n') {
        if line.contains("PRIVATE KEY-----") {
            let begins = line.contains("-----BEGIN") && !line.contains("-----END");
            of_key = if begins { KEY_LINES_MAX } else { 0 };
            clean.push_str(BLOT);
            clean.push('\n');
        } else if of_key > 0 {
            // Base64 and the journal's prefix: nothing of it is of use.
            of_key -= 1;
        } else {
            redact_line(line, &mut clean);
        }
    }
    clean
}

fn redact_line(line: &str, clean: &mut String) {
    let lower = line.to_ascii_lowercase();
    let mut done = 0;
    while let Some((start, end)) = next_secret(line, &lower, done) {
        clean.push_str(&line[done..start]);
        clean.push_str(BLOT);
        done = end;
    }
    clean.push_str(&line[done..]);
}

/// Where the next value of a secret is, from `from` on.
fn next_secret(line: &str, lower: &str, from: usize) -> Option<(usize, usize)> {
    let mut search = from;
    loop {
        let found = NAMES
            .iter()
            .filter_map(|name| Some((lower[search..].find(name)? + search, *name)))
            .min()?;
        let behind = found.0 + found.1.len();
        let rest = &line[behind..];
        let gap = rest.len() - rest.trim_start_matches(['"', '\'', '=', ':', ' ']).len();
        let assigned = rest[..gap].contains(['=', ':']) || found.1 == "bearer" && gap > 0;
        let start = behind + gap;
        let value = &line[start..];
        let length = value
            .find(|c: char| c.is_whitespace() || "\"',;&}".contains(c))
            .unwrap_or(value.len());
        if assigned
            && length > 0
            && found.1 != "bearer"
            && value[..length].eq_ignore_ascii_case("bearer")
        {
            // `token: Bearer x`: the value is behind the word, which is found next.
            search = start;
        } else if assigned && length > 0 {
            return Some((start, start + length));
        } else {
            search = behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blotted_out_and_the_rest_stays() {
        #[rustfmt::skip] // one case per line
        let cases = [
            ("nothing here\n",                       "nothing here\n"),
            ("password=hunter2 user=ann\n",          "password=[redacted] user=ann\n"),
            ("{\"token\": \"abc.def\", \"a\": 1}\n", "{\"token\": \"[redacted]\", \"a\": 1}\n"),
            ("Authorization: Bearer abc\n",          "Authorization: Bearer [redacted]\n"),
            ("token: Bearer abc\n",                  "token: Bearer [redacted]\n"),
            ("SECRET=1 TOKEN=2",                     "SECRET=[redacted] TOKEN=[redacted]"),
            ("mounted secret volume for pod\n",      "mounted secret volume for pod\n"),
            ("a\n-----BEGIN EC PRIVATE KEY-----\nMHc\nAbc\n-----END EC PRIVATE KEY-----\nb\n", "a\n[redacted]\n[redacted]\nb\n"),
            ("client-key-data: TFM=\n",              "client-key-data: [redacted]\n"),
            ("",                                     ""),
        ];
        for (text, want) in cases {
            assert_eq!(redact(text), want);
        }
    }

    #[test]
    fn a_bundle_is_a_tar_that_tar_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar.gz");
        let mut bundle = Bundle::create(&path, 1_700_000_000).unwrap();
        bundle.add("m/one.txt", "first\n").unwrap();
        bundle.add("m/two.txt", &"x".repeat(2000)).unwrap();
        bundle.finish().unwrap();
        let tar = |arguments: &[&str]| {
            let output = std::process::Command::new("tar")
                .args(arguments)
                .arg(&path)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(tar(&["-tzf"]), "m/one.txt\nm/two.txt\n");
        assert_eq!(tar(&["-xzOf"]), format!("first\n{}", "x".repeat(2000)));
        assert!(Bundle::create(&path, 0).is_err(), "nothing is overwritten");
    }
}
