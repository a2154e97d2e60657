//! What an object store, or the way to it, says no with.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use windlass_common::error::ErrorClass;

/// Longest text of a store that is repeated, characters.
const TEXT_MAX: usize = 300;

/// What was asked of which object of which store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `read`, `write`, `list`, ….
    pub doing: &'static str,
    /// The bucket.
    pub bucket: String,
    /// The object, or what the names of those begin with that are listed.
    pub key: String,
    /// The store.
    pub endpoint: String,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            doing,
            bucket,
            key,
            endpoint,
        } = self;
        write!(f, "{doing} s3://{bucket}/{key} at {endpoint}")
    }
}

/// Why an object store did not do what was asked. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum S3Error {
    /// The credentials cannot be used.
    #[error(
        "cannot use the credentials in {}: {problem}; it has to hold aws_access_key_id = … and \
         aws_secret_access_key = … with mode 0600",
        path.display()
    )]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// What the system says.
        #[source]
        source: Option<io::Error>,
    },
    /// Nothing says which servers to trust.
    #[error(
        "cannot use the CA certificates in {}: {problem}; name a PEM file in backup.s3.ca_file",
        path.display()
    )]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set TLS up")]
    Setup(#[source] rustls::Error),
    /// The store's address does not make a request.
    #[error("cannot {asked}: this makes no request")]
    Request {
        /// What was asked.
        asked: Box<Asked>,
        /// Why.
        #[source]
        source: hyper::http::Error,
    },
    /// No connection.
    #[error("cannot {asked}: it does not connect; check backup.s3.endpoint, names and routes")]
    Connect {
        /// What was asked.
        asked: Box<Asked>,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The server is not trusted, or speaks no TLS.
    #[error(
        "cannot {asked}: TLS fails; if its certificate is of a private CA, name that in backup.s3.ca_file"
    )]
    Tls {
        /// What was asked.
        asked: Box<Asked>,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("cannot {asked}: the connection broke")]
    Broken {
        /// What was asked.
        asked: Box<Asked>,
        /// What HTTP says.
        #[source]
        source: hyper::Error,
    },
    /// It took too long.
    #[error("cannot {asked}: no whole answer within {limit:?}; backup.s3.timeout_s sets that")]
    Slow {
        /// What was asked.
        asked: Box<Asked>,
        /// How long it was given.
        limit: Duration,
    },
    /// The store refused.
    #[error("cannot {asked}: {refusal}")]
    Refused {
        /// What was asked.
        asked: Box<Asked>,
        /// What it said.
        refusal: Box<Refusal>,
    },
    /// What came is not what S3 answers.
    #[error("cannot {asked}: the answer is none of S3 ({problem}); check backup.s3.endpoint")]
    Answer {
        /// What was asked.
        asked: Box<Asked>,
        /// What is wrong with it.
        problem: String,
    },
    /// What the store has is not what it was given.
    #[error("cannot {asked}: the store has something else than it was given ({found})")]
    Differs {
        /// What was asked.
        asked: Box<Asked>,
        /// The difference.
        found: String,
    },
    /// The file to be stored cannot be read, or changed.
    #[error("cannot {asked}: the file to be sent is of no use")]
    File {
        /// What was asked.
        asked: Box<Asked>,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What has to be remembered of an upload cannot be.
    #[error("cannot note the upload in {}; see that the backups' directory is writable and has room", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A task of the runtime was lost.
    #[error("the object store was not asked")]
    Lost(#[source] tokio::task::JoinError),
}

/// How a store refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of HTTP.
    pub status: u16,
    /// Its word for it, such as `AccessDenied`; empty where it gave none.
    pub code: String,
    /// Its words.
    pub message: String,
    /// How far its clock is from this host's, if that is known and much.
    pub skew: Option<Duration>,
}

/// Clocks that differ by more are named when the store refuses.
const SKEW_SHOWN: Duration = Duration::from_secs(60);
/// Clocks that differ by more are why: S3 bears 15 minutes, and says when it answers to the second.
const SKEW_REFUSED: Duration = Duration::from_secs(890);

impl Refusal {
    /// Reads the document that S3 sends with a refusal.
    pub(super) fn read(status: u16, body: &[u8], skew: Option<Duration>) -> Refusal {
        let text = String::from_utf8_lossy(body);
        let element = |name: &str| {
            let from = text.split_once(&format!("<{name}>"))?.1;
            let value = from.split_once(&format!("</{name}>"))?.0;
            Some(value.trim().chars().take(TEXT_MAX).collect::<String>())
        };
        Refusal {
            status,
            code: element("Code").unwrap_or_default(),
            message: element("Message").unwrap_or_default(),
            skew: skew.filter(|skew| *skew > SKEW_SHOWN),
        }
    }

    /// Who acts, and what is to be done.
    fn judge(&self) -> (ErrorClass, &'static str) {
        use ErrorClass::{Operator, Retry};
        match self.code.as_str() {
            "SlowDown"
            | "InternalError"
            | "ServiceUnavailable"
            | "RequestTimeout"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "TooManyRequests"
            | "ThrottlingException" => return (Retry, "it is busy; this is tried again"),
            "BadDigest" | "IncompleteBody" | "XAmzContentChecksumMismatch" | "NoSuchUpload" => {
                return (Retry, "the upload did not arrive whole; it is made again");
            }
            "InvalidAccessKeyId"
            | "NotSignedUp"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "ExpiredToken"
            | "TokenRefreshRequired"
            | "InvalidClientTokenId" => {
                return (
                    Operator,
                    "the key is not the store's; correct the file of backup.s3.credentials, which is read anew each time",
                );
            }
            "RequestTimeTooSkewed" | "RequestExpired" => {
                return (Operator, "clocks differ; mend the time server of this host");
            }
            "NoSuchBucket" => {
                return (Operator, "make the bucket, or correct backup.s3.bucket");
            }
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "IllegalLocationConstraintException" => {
                return (
                    Operator,
                    "the bucket is in another region; correct backup.s3.region and backup.s3.endpoint",
                );
            }
            "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge" => {
                return (Operator, "make room in the store, or raise the quota");
            }
            _ => {}
        }
        match self.status {
            401 | 403 if self.message.contains("xpired") || self.skew > Some(SKEW_REFUSED) => {
                (Operator, "clocks differ; mend the time server of this host")
            }
            401 | 403 => (
                Operator,
                "give the key the rights that docs/operations.md lists; a lock of the bucket refuses too",
            ),
            301 | 302 | 307 | 308 => (
                Operator,
                "the bucket is elsewhere; correct backup.s3.region and backup.s3.endpoint",
            ),
            507 => (Operator, "make room in the store"),
            501 => (
                Operator,
                "the store lacks this part of S3; backup.s3.checksums = false leaves checksums out",
            ),
            408 | 429 | 500..=599 => (Retry, "this is tried again"),
            _ => (Operator, "check the settings in [backup.s3]"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it answers {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, " ({})", self.message)?;
        }
        write!(f, "; {}", self.judge().1)?;
        if let Some(skew) = self.skew {
            write!(f, "; its clock is {} s from this host's", skew.as_secs())?;
        }
        Ok(())
    }
}

impl S3Error {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::Slow { .. } => ErrorClass::Retry,
            Self::Tls { source, .. } => match untrusted(source) {
                true => ErrorClass::Operator,
                false => ErrorClass::Retry,
            },
            Self::Refused { refusal, .. } => refusal.judge().0,
            // Made again, it is sent anew.
            Self::Differs { .. } => ErrorClass::Retry,
            Self::Credentials { .. }
            | Self::Authorities { .. }
            | Self::Answer { .. }
            | Self::File { .. }
            | Self::Note { .. } => ErrorClass::Operator,
            Self::Setup(_) | Self::Request { .. } | Self::Lost(_) => ErrorClass::Bug,
        }
    }

    /// Whether the store says that there is no such object. A missing bucket is something else.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. }
            if refusal.status == 404 && refusal.code != "NoSuchBucket")
    }

    /// Whether a condition of the request did not hold.
    pub(super) fn is_condition(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.status == 412)
    }

    /// Whether the store does not know what was asked.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if refusal.status == 501)
    }
}

/// Whether TLS failed because of who answers, not on the way.
fn untrusted(source: &io::Error) -> bool {
    let inner = source.get_ref().and_then(|e| e.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, message: &str) -> S3Error {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message><Key>k</Key></Error>"
        );
        let asked = Asked {
            doing: "write",
            bucket: "vault".to_owned(),
            key: "demo/x.json".to_owned(),
            endpoint: "https://s3.example".to_owned(),
        };
        S3Error::Refused {
            asked: Box::new(asked),
            refusal: Box::new(Refusal::read(status, body.as_bytes(), None)),
        }
    }

    #[test]
    fn what_a_store_refuses_says_who_acts_and_what_to_do() {
        use ErrorClass::{Operator, Retry};
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (403, "AccessDenied",         "",                    Operator, "rights"),
            (403, "AccessDenied",         "Request has expired", Operator, "clocks"),
            (403, "InvalidAccessKeyId",   "",                    Operator, "backup.s3.credentials"),
            (403, "SignatureDoesNotMatch", "",                   Operator, "backup.s3.credentials"),
            (403, "RequestTimeTooSkewed", "",                    Operator, "time server"),
            (404, "NoSuchBucket",         "",                    Operator, "make the bucket"),
            (301, "PermanentRedirect",    "",                    Operator, "region"),
            (307, "",                     "",                    Operator, "region"),
            (400, "AuthorizationHeaderMalformed", "",            Operator, "region"),
            (400, "InvalidArgument",      "",                    Operator, "settings"),
            (400, "RequestTimeout",       "",                    Retry,    "again"),
            (400, "BadDigest",            "",                    Retry,    "made again"),
            (409, "OperationAborted",     "",                    Retry,    "again"),
            (429, "",                     "",                    Retry,    "again"),
            (503, "SlowDown",             "",                    Retry,    "busy"),
            (500, "InternalError",        "",                    Retry,    "busy"),
            (502, "",                     "",                    Retry,    "again"),
            (501, "NotImplemented",       "",                    Operator, "checksums"),
            (507, "XMinioStorageFull",    "",                    Operator, "room"),
        ];
        for (status, code, message, class, remedy) in cases {
            let error = refused(status, code, message);
            assert_eq!(error.class(), class, "{error}");
            let text = error.to_string();
            for part in ["s3://vault/demo/x.json", "https://s3.example", code, remedy] {
                assert!(text.contains(part), "{part:?} is not in: {text}");
            }
        }
        let far = |skew| Refusal::read(403, b"<Code>AccessDenied</Code>", Some(skew)).to_string();
        assert!(far(Duration::from_secs(900)).contains("clocks differ"));
        assert!(!far(Duration::from_secs(120)).contains("clocks differ"));
        assert!(far(Duration::from_secs(120)).contains("120 s"));
        assert!(refused(404, "NoSuchKey", "").is_missing());
        assert!(!refused(404, "NoSuchBucket", "").is_missing());
        assert!(refused(412, "PreconditionFailed", "").is_condition());
    }

    #[test]
    fn what_is_no_document_of_s3_is_bounded() {
        let body = format!("<Message>{}</Message>", "x".repeat(10_000));
        let refusal = Refusal::read(500, body.as_bytes(), Some(Duration::from_secs(3600)));
        assert_eq!(refusal.message.len(), TEXT_MAX);
        assert_eq!(refusal.code, "");
        assert!(refusal.to_string().contains("3600 s"), "{refusal}");
        assert_eq!(Refusal::read(502, b"\xff<html>", None).code, "");
    }
}
