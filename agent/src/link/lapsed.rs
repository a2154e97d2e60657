//! Coming back with a certificate that is over: see [`windlass_common::lapsed`] for the rule.

use std::sync::Arc;

use windlass_common::clock::Clock;
use windlass_common::lapsed::{channel, statement};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::tls;
use windlass_common::wire::message::{EnrollResponse, LapsedRequest};

use super::connection::To;
use super::enroll::{self, EnrollError};
use super::identity::Identity;

/// Asks the director that is tried, which the last identity's roots verify, for a certificate that follows
/// the last one. The key for it is a new one: a crash before it is saved leaves the last identity, which
/// asks again.
pub(super) async fn come_back(
    me: &MachineIdentity,
    last: &Identity,
    to: To,
    clock: &Clock,
) -> Result<Identity, EnrollError> {
    let mut tls = tls::enroll_client_trusting(&last.roots).map_err(EnrollError::Tls)?;
    tls.time_provider = Arc::new(clock.clone());
    let key = PrivateKey::generate().map_err(EnrollError::Request)?;
    let answer: EnrollResponse = enroll::ask(tls, &me.director, to, |connection| {
        request(connection, last, &key)
    })
    .await?;
    Identity::accept(me, key, answer.chain_der, answer.roots_der).map_err(EnrollError::Answer)
}

fn request(
    connection: &quinn::Connection,
    last: &Identity,
    key: &PrivateKey,
) -> Result<LapsedRequest, EnrollError> {
    let channel = channel(connection).map_err(EnrollError::Channel)?;
    let request_der = key.request().map_err(EnrollError::Request)?;
    let certificate = last.chain.first().map_or(&[][..], |leaf| leaf);
    let said = statement(&channel, certificate, &request_der);
    let sign = |key: &PrivateKey| key.sign(&said).map_err(EnrollError::Request);
    Ok(LapsedRequest {
        chain_der: last.chain.iter().map(|der| der.to_vec()).collect(),
        last_signature: sign(&last.key)?,
        next_signature: sign(key)?,
        request_der,
    })
}
