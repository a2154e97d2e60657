//! The calls of S3 that are needed, each signed, bounded and tried again where that may help.
//!
//! # Invariants
//! * A call is tried [`TRIES`] times, and again only after an error of class retry; all calls can be repeated.
//! * A signature lives for [`SIGNED_FOR`]; the secret itself is never sent.
//! * The key is read from its file for each call, so that it can be replaced while the director runs.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, DATE};
use hyper::{Method, Request};
use rusty_s3::actions::{
    AbortMultipartUpload, CompleteMultipartUpload, CompleteMultipartUploadResponse,
    CreateMultipartUpload, DeleteObject, GetObject, HeadObject, ListObjectsV2, PutObject, S3Action,
    UploadPart,
};
use rusty_s3::{Bucket, Credentials};
use url::Url;
use windlass_common::error::ErrorClass;
use windlass_common::id::Digest;

use super::error::{Asked, Refusal, S3Error};
use super::wire::{Answer, Wire};
use super::{S3Config, credentials};
use crate::model::Timestamp;

/// How often a call is tried.
const TRIES: u32 = 5;
/// Pause after the first failure; doubled with each further one.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// How long a signature lives: as long as S3 bears clocks to differ.
const SIGNED_FOR: Duration = Duration::from_secs(900);
/// Largest answer that is no object, bytes: a page of 1000 names of 1 KiB, and what is around them.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Pages of one list: a million objects.
const PAGES_MAX: usize = 1000;
const CHECKSUM: &str = "x-amz-checksum-sha256";

/// A client of one bucket.
pub(super) struct Client {
    bucket: Bucket,
    endpoint: String,
    wire: Wire,
    credentials: PathBuf,
    checksums: bool,
    pause: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({} at {})", self.bucket.name(), self.endpoint)
    }
}

/// A header of a request.
type Header = (&'static str, Cow<'static, str>);

/// The condition that nothing has the name yet.
fn condition(new: bool) -> &'static [Header] {
    match new {
        true => &[("if-none-match", Cow::Borrowed("*"))],
        false => &[],
    }
}

/// A request that is signed.
struct Signed {
    method: Method,
    url: Url,
    headers: Vec<Header>,
}

/// An object, as it is listed.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) key: String,
    /// When it came to be, by the store's clock.
    pub(super) modified: Option<Timestamp>,
    /// What differs for another object of the same name, if the store says anything.
    pub(super) stamp: Option<String>,
}

/// Objects.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) objects: Vec<Listed>,
    /// When they were listed, by the store's clock.
    pub(super) at: Option<Timestamp>,
}

/// What is known of an object without reading it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) bytes: Option<u64>,
    /// SHA-256 as the store computed it: of the object, or of the parts' and their number.
    pub(super) checksum: Option<String>,
}

/// A part of an upload that the store has.
#[derive(Debug, Clone)]
pub(super) struct Uploaded {
    pub(super) etag: String,
    pub(super) digest: Digest,
}

/// How S3 writes a digest.
pub(super) fn checksum(digest: &Digest) -> String {
    STANDARD.encode(digest.as_bytes())
}

fn sign<'a, A: S3Action<'a>>(action: &A, method: Method) -> Signed {
    Signed {
        method,
        url: action.sign(SIGNED_FOR),
        headers: Vec::new(),
    }
}

/// Signs a request together with headers that are part of what is signed.
fn sign_with<'a, A: S3Action<'a>>(mut action: A, method: Method, headers: Vec<Header>) -> Signed {
    for (name, value) in &headers {
        action.headers_mut().insert(*name, value.clone());
    }
    Signed {
        headers,
        ..sign(&action, method)
    }
}

impl Client {
    pub(super) fn new(config: &S3Config, bucket: Bucket, pause: Duration) -> Result<Self, S3Error> {
        Ok(Self {
            wire: Wire::new(bucket.base_url(), config.ca_file.as_deref(), config.timeout)?,
            bucket,
            endpoint: config.endpoint.as_str().trim_end_matches('/').to_owned(),
            credentials: config.credentials.clone(),
            checksums: config.checksums,
            pause,
        })
    }

    /// What an error of a call says was asked.
    pub(super) fn asked(&self, doing: &'static str, key: &str) -> Box<Asked> {
        Box::new(Asked {
            doing,
            bucket: self.bucket.name().to_owned(),
            key: key.to_owned(),
            endpoint: self.endpoint.clone(),
        })
    }

    async fn keys(&self) -> Result<Credentials, S3Error> {
        let path = self.credentials.clone();
        tokio::task::spawn_blocking(move || credentials::load(&path))
            .await
            .map_err(S3Error::Lost)?
    }

    /// Asks until there is an answer with a status of success, or it is of no use to go on.
    async fn ask(
        &self,
        asked: Box<Asked>,
        sign: impl Fn(&Credentials) -> Signed + Send + Sync,
        plain: &[Header],
        body: Bytes,
        most: usize,
    ) -> Result<Answer, S3Error> {
        let mut pause = self.pause;
        let mut tried = 0;
        loop {
            tried += 1;
            let keys = self.keys().await?;
            let error = match self
                .once(&asked, sign(&keys), plain, body.clone(), most)
                .await
            {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if error.class() != ErrorClass::Retry || tried == TRIES {
                return Err(error);
            }
            tracing::debug!(%error, tried, "the object store is asked again");
            tokio::time::sleep(jittered(pause)).await;
            pause *= 2;
        }
    }

    async fn once(
        &self,
        asked: &Asked,
        signed: Signed,
        plain: &[Header],
        body: Bytes,
        most: usize,
    ) -> Result<Answer, S3Error> {
        let path = match signed.url.query() {
            Some(query) => format!("{}?{query}", signed.url.path()),
            None => signed.url.path().to_owned(),
        };
        let mut request = Request::builder().method(signed.method).uri(path);
        for (name, value) in signed.headers.iter().chain(plain) {
            request = request.header(*name, value.as_ref());
        }
        let answer = self.wire.exchange(asked, request, body, most).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let now = Timestamp::now();
        let skew = clock(&answer)
            .map(|its| Duration::from_millis(its.ms_since(now).max(now.ms_since(its))));
        Err(S3Error::Refused {
            asked: Box::new(asked.clone()),
            refusal: Box::new(Refusal::read(answer.status.as_u16(), &answer.body, skew)),
        })
    }

    /// The object, of at most so many bytes; nothing where there is none.
    pub(super) async fn get(&self, key: &str, most: usize) -> Result<Option<Bytes>, S3Error> {
        let asked = self.asked("read", key);
        let sign =
            |keys: &Credentials| sign(&GetObject::new(&self.bucket, Some(keys), key), Method::GET);
        match self.ask(asked, sign, &[], Bytes::new(), most).await {
            Ok(answer) => Ok(Some(answer.body)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// So many bytes of an object that has them, from there on.
    pub(super) async fn get_piece(
        &self,
        key: &str,
        from: u64,
        bytes: usize,
    ) -> Result<Bytes, S3Error> {
        let asked = self.asked("read", key);
        let sign =
            |keys: &Credentials| sign(&GetObject::new(&self.bucket, Some(keys), key), Method::GET);
        let last = from + (bytes as u64).saturating_sub(1);
        let range = [("range", format!("bytes={from}-{last}").into())];
        let answer = self.ask(asked, sign, &range, Bytes::new(), bytes).await?;
        if answer.body.len() == bytes {
            return Ok(answer.body);
        }
        Err(S3Error::Differs {
            asked: self.asked("read", key),
            found: format!("{} bytes in the place of {bytes}", answer.body.len()),
        })
    }

    /// What is known of an object; nothing where there is none.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Head>, S3Error> {
        let asked = self.asked("look at", key);
        let sign = |keys: &Credentials| {
            let head = HeadObject::new(&self.bucket, Some(keys), key);
            let mode = match self.checksums {
                true => vec![("x-amz-checksum-mode", "ENABLED".into())],
                false => Vec::new(),
            };
            sign_with(head, Method::HEAD, mode)
        };
        let answer = match self
            .ask(asked, sign, &[], Bytes::new(), ANSWER_BYTES_MAX)
            .await
        {
            Ok(answer) => answer,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = answer.header(CONTENT_LENGTH.as_str());
        Ok(Some(Head {
            bytes: bytes.and_then(|bytes| bytes.parse().ok()),
            checksum: answer.header(CHECKSUM).map(str::to_owned),
        }))
    }

    /// Writes an object; with `new` only if there is none of its name, for which the error is a condition's.
    pub(super) async fn put(&self, key: &str, body: Bytes, new: bool) -> Result<(), S3Error> {
        let digest = Digest::of(&body);
        let sign = |keys: &Credentials| {
            let put = PutObject::new(&self.bucket, Some(keys), key);
            sign_with(put, Method::PUT, self.checked(&digest))
        };
        let asked = self.asked("write", key);
        let put = self.ask(asked, sign, condition(new), body, ANSWER_BYTES_MAX);
        put.await.map(drop)
    }

    fn checked(&self, digest: &Digest) -> Vec<Header> {
        match self.checksums {
            true => vec![(CHECKSUM, checksum(digest).into())],
            false => Vec::new(),
        }
    }

    /// Removes an object; one that is not there is as good.
    pub(super) async fn delete(&self, key: &str) -> Result<(), S3Error> {
        let asked = self.asked("delete", key);
        let sign = |keys: &Credentials| {
            sign(
                &DeleteObject::new(&self.bucket, Some(keys), key),
                Method::DELETE,
            )
        };
        match self
            .ask(asked, sign, &[], Bytes::new(), ANSWER_BYTES_MAX)
            .await
        {
            Err(error) if !error.is_missing() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// The objects whose names begin so, in the order of names.
    pub(super) async fn list(&self, prefix: &str) -> Result<Listing, S3Error> {
        let mut listing = Listing::default();
        let mut next: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let asked = self.asked("list", prefix);
            let sign = |keys: &Credentials| {
                let mut list = ListObjectsV2::new(&self.bucket, Some(keys));
                if !prefix.is_empty() {
                    list.with_prefix(prefix);
                }
                if let Some(token) = &next {
                    list.with_continuation_token(token.as_str());
                }
                sign(&list, Method::GET)
            };
            let answer = self
                .ask(asked, sign, &[], Bytes::new(), ANSWER_BYTES_MAX)
                .await?;
            let text = self.text("list", prefix, &answer)?;
            let page = ListObjectsV2::parse_response(text)
                .map_err(|error| self.answer("list", prefix, error.to_string()))?;
            listing.at = listing.at.or_else(|| clock(&answer));
            listing
                .objects
                .extend(page.contents.into_iter().map(|object| Listed {
                    key: object.key,
                    modified: object.last_modified.as_ref().and_then(|at| at.parse().ok()),
                    stamp: object.etag.or(object.last_modified),
                }));
            next = page.next_continuation_token;
            if next.is_none() {
                return Ok(listing);
            }
        }
        let problem = format!("more than {PAGES_MAX} pages; give backups a prefix of their own");
        Err(self.answer("list", prefix, problem))
    }

    /// Begins an upload in parts; returns its id.
    pub(super) async fn create_upload(&self, key: &str) -> Result<String, S3Error> {
        let asked = self.asked("begin to write", key);
        let sign = |keys: &Credentials| {
            let create = CreateMultipartUpload::new(&self.bucket, Some(keys), key);
            let algorithm = match self.checksums {
                true => vec![("x-amz-checksum-algorithm", "SHA256".into())],
                false => Vec::new(),
            };
            sign_with(create, Method::POST, algorithm)
        };
        let answer = self
            .ask(asked, sign, &[], Bytes::new(), ANSWER_BYTES_MAX)
            .await?;
        let text = self.text("begin to write", key, &answer)?;
        CreateMultipartUpload::parse_response(text)
            .map(|created| created.upload_id().to_owned())
            .map_err(|error| self.answer("begin to write", key, error.to_string()))
    }

    /// Sends a part; `number` counts from 1.
    pub(super) async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        body: Bytes,
    ) -> Result<Uploaded, S3Error> {
        let asked = self.asked("write a part of", key);
        let digest = Digest::of(&body);
        let sign = |keys: &Credentials| {
            let part = UploadPart::new(&self.bucket, Some(keys), key, number, upload);
            sign_with(part, Method::PUT, self.checked(&digest))
        };
        let answer = self.ask(asked, sign, &[], body, ANSWER_BYTES_MAX).await?;
        let etag = answer.header("etag").map(str::to_owned);
        let etag = etag
            .ok_or_else(|| self.answer("write a part of", key, "a part has no ETag".to_owned()))?;
        Ok(Uploaded { etag, digest })
    }

    /// Makes the object of its parts; with `new` only if there is none of its name.
    pub(super) async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        parts: &[Uploaded],
        new: bool,
    ) -> Result<(), S3Error> {
        const DOING: &str = "finish writing";
        let body = Bytes::from(self.completion(parts));
        let sign = |keys: &Credentials| {
            let etags = parts.iter().map(|part| part.etag.as_str());
            let complete =
                CompleteMultipartUpload::new(&self.bucket, Some(keys), key, upload, etags);
            sign(&complete, Method::POST)
        };
        let asked = self.asked(DOING, key);
        let answer = self
            .ask(asked.clone(), sign, condition(new), body, ANSWER_BYTES_MAX)
            .await?;
        let text = self.text(DOING, key, &answer)?;
        let Err(error) = CompleteMultipartUploadResponse::parse(text.trim_start()) else {
            return Ok(());
        };
        // It begins to answer before it knows.
        let refusal = Refusal::read(answer.status.as_u16(), &answer.body, None);
        let refusal = Box::new(refusal);
        match refusal.code.is_empty() {
            true => Err(self.answer(DOING, key, error.to_string())),
            false => Err(S3Error::Refused { asked, refusal }),
        }
    }

    /// The document that names the parts of an object.
    fn completion(&self, parts: &[Uploaded]) -> String {
        use fmt::Write;
        let mut text = String::from(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">",
        );
        for (part, number) in parts.iter().zip(1..) {
            let etag = escaped(&part.etag);
            let checksum = match self.checksums {
                true => format!(
                    "<ChecksumSHA256>{}</ChecksumSHA256>",
                    checksum(&part.digest)
                ),
                false => String::new(),
            };
            let number: u32 = number;
            // Writing to a text does not fail.
            let _ = write!(
                text,
                "<Part>{checksum}<ETag>{etag}</ETag><PartNumber>{number}</PartNumber></Part>"
            );
        }
        text.push_str("</CompleteMultipartUpload>");
        text
    }

    /// Gives an upload up; one that is not there is as good.
    pub(super) async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), S3Error> {
        let asked = self.asked("give up writing", key);
        let sign = |keys: &Credentials| {
            let abort = AbortMultipartUpload::new(&self.bucket, Some(keys), key, upload);
            sign(&abort, Method::DELETE)
        };
        match self
            .ask(asked, sign, &[], Bytes::new(), ANSWER_BYTES_MAX)
            .await
        {
            Err(error) if !error.is_missing() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn text<'a>(
        &self,
        doing: &'static str,
        key: &str,
        answer: &'a Answer,
    ) -> Result<&'a str, S3Error> {
        std::str::from_utf8(&answer.body)
            .map_err(|error| self.answer(doing, key, error.to_string()))
    }

    fn answer(&self, doing: &'static str, key: &str, problem: String) -> S3Error {
        S3Error::Answer {
            asked: self.asked(doing, key),
            problem,
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// When the store answered, by its own clock.
fn clock(answer: &Answer) -> Option<Timestamp> {
    let date = answer.header(DATE.as_str())?;
    let date = jiff::fmt::rfc2822::parse(date).ok()?;
    Some(date.timestamp().into())
}

/// Between a half and the whole of it, so that many that were refused at once do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without random bytes it is the whole of it.
    let share = match aws_lc_rs::rand::fill(&mut byte) {
        Ok(()) => u32::from(byte[0]),
        Err(_) => 255,
    };
    pause / 2 + pause / 2 * share / 255
}
