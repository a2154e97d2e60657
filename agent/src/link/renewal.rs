//! The certificate and the roots of a connection's machine, and how the director changes them while it
//! lasts.
//!
//! # Invariants
//! * What [`TrustHeld`] says is on disk before it is said.
//! * One request for a certificate at a time: an answer belongs to the key that was made last.
//!
//! # After a crash
//! The files are the old ones or the new ones, whole; what is held is said again on connecting.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use quinn::SendStream;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;

use windlass_common::clock::Clock;
use windlass_common::error::ErrorChain;
use windlass_common::id::Digest;
use windlass_common::pki::{Leaf, PrivateKey};
use windlass_common::wire::frame;
use windlass_common::wire::message::{
    Body, RenewRequest, RenewResponse, TrustBundle, TrustHeld, since,
};

use super::connection::{Context, Ended};
use super::identity::{Identity, IdentityStore};

/// What the machine holds, and what is to be said about it.
#[derive(Debug)]
pub(super) struct Renewal {
    state: Mutex<State>,
    /// There is something to say.
    pub(super) wake: Notify,
}

#[derive(Debug)]
struct State {
    leaf: Leaf,
    held: TrustHeld,
    /// Whether `held` is news to the director.
    news: bool,
    /// Whether the director's protocol has [`TrustHeld`].
    understood: bool,
    /// Whether a new certificate is to be asked for.
    ordered: bool,
    /// The key of the request under way.
    key: Option<PrivateKey>,
}

impl Renewal {
    pub(super) fn new(identity: &Identity, protocol: u16) -> Renewal {
        let renewal = Renewal {
            state: Mutex::new(State {
                leaf: identity.leaf.clone(),
                held: held(&identity.roots, &identity.chain),
                news: true,
                understood: since(TrustHeld::KIND) <= protocol,
                ordered: false,
                key: None,
            }),
            wake: Notify::new(),
        };
        renewal.wake.notify_one();
        renewal
    }

    fn renew_at(&self) -> Timestamp {
        self.state().leaf.renew_at()
    }

    /// Waits until the certificate there is then is due, and not before `pause` is over.
    pub(super) async fn due(&self, clock: &Clock, pause: Timestamp) {
        clock.reached(pause).await;
        loop {
            let at = self.renew_at();
            clock.reached(at).await;
            if self.renew_at() == at {
                return;
            }
        }
    }

    /// A new certificate is to be asked for; if a request is under way, after its answer.
    pub(super) fn order(&self) {
        self.state().ordered = true;
        self.wake.notify_one();
    }

    /// Says what there is to say.
    pub(super) async fn say(&self, send: &mut SendStream) -> Result<(), Ended> {
        if let Some(held) = self.news() {
            frame::write(send, &held).await.map_err(Ended::Frame)?;
        }
        if let Some(request) = self.request()? {
            frame::write(send, &request).await.map_err(Ended::Frame)?;
        }
        Ok(())
    }

    fn news(&self) -> Option<TrustHeld> {
        let mut state = self.state();
        let news = std::mem::take(&mut state.news) && state.understood;
        news.then(|| state.held.clone())
    }

    fn request(&self) -> Result<Option<RenewRequest>, Ended> {
        let mut state = self.state();
        if !state.ordered || state.key.is_some() {
            return Ok(None);
        }
        let key = PrivateKey::generate().map_err(Ended::Request)?;
        let request_der = key.request().map_err(Ended::Request)?;
        state.ordered = false;
        state.key = Some(key);
        Ok(Some(RenewRequest { request_der }))
    }

    /// Takes the answer to a request; one that nobody asked for is left.
    pub(super) fn end(&self, context: &Context<'_>, response: RenewResponse) -> Result<(), Ended> {
        let Some(key) = self.state().key.take() else {
            return Ok(());
        };
        let RenewResponse {
            chain_der,
            roots_der,
        } = response;
        let fresh =
            Identity::accept(context.me, key, chain_der, roots_der).map_err(Ended::Renewal)?;
        context.store.save(&fresh).map_err(Ended::Renewal)?;
        tracing::info!(until = %fresh.leaf.not_after, "certificate renewed");
        let mut state = self.state();
        state.held = held(&fresh.roots, &fresh.chain);
        state.leaf = fresh.leaf;
        state.news = true;
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Takes the director's roots. Those that cannot be kept are not acknowledged: the director sends
    /// them again, and trusts the machine with its old ones until then.
    pub(super) fn trust(&self, store: &IdentityStore, bundle: TrustBundle) {
        match store.trust(bundle.roots_der) {
            Ok(roots) => {
                tracing::info!(roots = roots.len(), "root CAs replaced");
                let mut state = self.state();
                state.held.roots = digests(&roots);
                state.news = true;
                drop(state);
                self.wake.notify_one();
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the director's roots are not kept");
            }
        }
    }

    /// Nothing panics while it holds this lock, and the state is whole at any time.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn held(roots: &[CertificateDer<'_>], chain: &[CertificateDer<'_>]) -> TrustHeld {
    TrustHeld {
        roots: digests(roots),
        certificate: Digest::of(chain.first().map_or(&[], |leaf| leaf.as_ref())),
    }
}

fn digests(roots: &[CertificateDer<'_>]) -> Vec<Digest> {
    let mut digests: Vec<Digest> = roots.iter().map(|root| Digest::of(root)).collect();
    digests.sort_unstable();
    digests
}
