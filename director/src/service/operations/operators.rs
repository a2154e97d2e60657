//! Operators and what they may do.

use windlass_common::id::OperatorName;

use crate::model::{Caller, Operator, Role};
use crate::service::operators::Standing;
use crate::service::{Director, ServiceResult, allow};

impl Director {
    /// Whether an operator's certificate, which was verified, still counts, as its generation of the CA
    /// does; notes who has one of the newest.
    pub async fn operator_shows(&self, name: &str, generation: u32) -> bool {
        if !self.inner.ca.trusts(generation) {
            return false;
        }
        self.inner.rotations.operator_seen(name, generation).await;
        true
    }

    /// A certificate of the newest CA for the caller, for the key in its request.
    pub async fn renew_operator(
        &self,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<String> {
        self.inner.renew_operator(request_der, caller).await
    }

    /// Who the operator of a certificate is at the moment; `None` when it is nobody's, or was revoked.
    pub async fn caller(&self, name: &str) -> ServiceResult<Option<Caller>> {
        self.inner.caller(name).await
    }

    /// Watches whether an operator keeps a role and the generation of its certificate counts, for what
    /// goes on after its request was let in.
    pub fn standing(&self, operator: &str, needed: Role, generation: u32) -> Standing {
        let records = self.inner.records.clone();
        Standing::new(records, self.inner.ca.clone(), operator, needed, generation)
    }

    /// All operators, by name; those that were revoked too.
    pub async fn operators(&self) -> ServiceResult<Vec<Operator>> {
        Ok(self.inner.records.list().await?)
    }

    /// One operator.
    pub async fn operator(&self, name: &str) -> ServiceResult<Operator> {
        self.inner.operator(name).await
    }

    /// Adds an operator; returns its record and a certificate for the key in the request (PKCS#10,
    /// DER). A name that was given out before is refused, also one that was revoked.
    pub async fn add_operator(
        &self,
        name: OperatorName,
        role: Role,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<(Operator, String)> {
        allow(caller, Role::Admin, "add operators")?;
        self.inner
            .add_operator(name, role, request_der, caller)
            .await
    }

    /// Gives an operator another role, from its next request on. The last admin stays one.
    pub async fn set_role(
        &self,
        name: &str,
        role: Role,
        caller: &Caller,
    ) -> ServiceResult<Operator> {
        allow(caller, Role::Admin, "change roles")?;
        self.inner.set_role(name, role, caller).await
    }

    /// Shuts an operator out, at once and for good. The last admin cannot be.
    pub async fn revoke_operator(&self, name: &str, caller: &Caller) -> ServiceResult<Operator> {
        allow(caller, Role::Admin, "revoke operators")?;
        self.inner.revoke_operator(name, caller).await
    }
}
