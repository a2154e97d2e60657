//! The kinds of certificate a director issues, as rcgen parameters.
//!
//! | kind | issued by | usage | names |
//! | --- | --- | --- | --- |
//! | root | itself | signs issuers | – |
//! | issuer | root | signs leaves of one kind; its extended key usage narrows theirs | – |
//! | machine, operator | its issuer | client authentication | one URI |
//! | gateway, API | server issuer | server authentication | DNS names and addresses |
//!
//! Every certificate starts [`CLOCK_SKEW`] in the past, because a machine's clock may be behind the
//! director's when it boots.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

/// How far two clocks may be apart when a certificate is issued.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// Life of the root, seconds: ten years.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Longest subject common name (RFC 5280, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

/// Parameters that cannot be made: a name that no certificate can hold, or no randomness.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A name is not ASCII.
    #[error("{0:?} cannot be a name in a certificate")]
    Name(String),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
    /// Beyond the years that a certificate can hold.
    #[error("a certificate cannot be valid at {0}")]
    Time(Timestamp),
}

/// Which certificates an issuer may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Of clients: machines or operators.
    Client,
    /// Of servers: the gateway and the API.
    Server,
}

impl Usage {
    fn extended(self) -> ExtendedKeyUsagePurpose {
        match self {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }
    }
}

/// The root CA; valid for [`ROOT_LIFE`].
pub fn root(common_name: &str, now: Timestamp) -> Result<CertificateParams, ProfileError> {
    let mut params = base(common_name, now, ROOT_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// An issuer of leaves of one usage; lives as long as its root.
pub fn issuer(
    common_name: &str,
    usage: Usage,
    now: Timestamp,
) -> Result<CertificateParams, ProfileError> {
    let mut params = base(common_name, now, ROOT_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![usage.extended()];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A client: a machine or an operator, named by its URI alone.
pub fn client(
    common_name: &str,
    uri: &str,
    life: Duration,
    now: Timestamp,
) -> Result<CertificateParams, ProfileError> {
    let mut params = leaf(common_name, Usage::Client, life, now)?;
    let uri = uri
        .try_into()
        .map_err(|_| ProfileError::Name(uri.to_owned()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    Ok(params)
}

/// A server with these names and addresses.
pub fn server(
    names: &[String],
    addresses: &[IpAddr],
    life: Duration,
    now: Timestamp,
) -> Result<CertificateParams, ProfileError> {
    let common_name = names.first().map_or("director", String::as_str);
    let mut params = leaf(common_name, Usage::Server, life, now)?;
    for name in names {
        let dns = name
            .as_str()
            .try_into()
            .map_err(|_| ProfileError::Name(name.clone()))?;
        params.subject_alt_names.push(SanType::DnsName(dns));
    }
    params
        .subject_alt_names
        .extend(addresses.iter().copied().map(SanType::IpAddress));
    Ok(params)
}

fn leaf(
    common_name: &str,
    usage: Usage,
    life: Duration,
    now: Timestamp,
) -> Result<CertificateParams, ProfileError> {
    let mut params = base(common_name, now, life)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage.extended()];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base(
    common_name: &str,
    now: Timestamp,
    life: Duration,
) -> Result<CertificateParams, ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let common_name: String = common_name.chars().take(COMMON_NAME_MAX).collect();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.not_before = moment(now, -(CLOCK_SKEW.as_secs() as i64))?;
    params.not_after = moment(now, i64::try_from(life.as_secs()).unwrap_or(i64::MAX))?;
    params.serial_number = Some(serial()?);
    Ok(params)
}

fn moment(now: Timestamp, plus_s: i64) -> Result<OffsetDateTime, ProfileError> {
    let seconds = now.as_second().saturating_add(plus_s);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| ProfileError::Time(now))
}

/// 126 random bits, positive and of full length, as RFC 5280 asks.
fn serial() -> Result<SerialNumber, ProfileError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| ProfileError::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
