//! Renewal of what a cluster and its machines prove themselves with.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Timestamp;
use crate::kubernetes::facts::SecretsRevision;

/// How long the former key for tokens is kept: a kubelet asks for a new token of a pod after 24 hours at the
/// latest, whatever the pod asked for.
const TOKEN_KEY_KEPT_MS: u64 = 25 * 3600 * 1000;

/// The certificates that a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Certified {
    /// When the first of them began to be valid.
    pub issued_at: Timestamp,
    /// When they are renewed by themselves: after two thirds of their life.
    pub renew_at: Timestamp,
    /// When the first of them expires.
    pub expires_at: Timestamp,
}

/// What of a cluster is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum RotationKind {
    /// The key under which Secrets are encrypted in etcd.
    EncryptionKey,
    /// The authorities, and the key that signs tokens of service accounts.
    Authorities,
}

impl RotationKind {
    /// The stage with which it begins.
    pub fn first(self) -> Stage {
        match self {
            Self::EncryptionKey => Stage::AddKey,
            Self::Authorities => Stage::TrustBoth,
        }
    }

    /// The command that orders it.
    pub fn command(self) -> &'static str {
        match self {
            Self::EncryptionKey => "rotate-encryption-key",
            Self::Authorities => "rotate-ca",
        }
    }
}

/// How far a rotation is. Each stage begins when all machines of the cluster run with what the one before it
/// told them, so that in every stage machines of this one and of the one before get on with one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Every API server learns to read with the new key.
    AddKey,
    /// Every API server writes with the new key.
    UseKey,
    /// All Secrets are written again.
    Rewrite,
    /// Every API server forgets the old key.
    DropKey,
    /// Every machine trusts the old and the new authorities.
    TrustBoth,
    /// The pods are given both.
    Spread,
    /// Cluster DNS, which reads its authority at start alone, is started anew.
    RestartDns,
    /// Every machine gets certificates of the new authorities, and tokens are signed with the new key.
    SignNew,
    /// Every machine trusts the new authorities alone.
    TrustNew,
    /// Tokens of the old key are refused.
    DropTokens,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 10] = [
        Stage::AddKey,
        Stage::UseKey,
        Stage::Rewrite,
        Stage::DropKey,
        Stage::TrustBoth,
        Stage::Spread,
        Stage::RestartDns,
        Stage::SignNew,
        Stage::TrustNew,
        Stage::DropTokens,
    ];

    /// What it is a stage of.
    pub fn kind(self) -> RotationKind {
        match self {
            Self::AddKey | Self::UseKey | Self::Rewrite | Self::DropKey => {
                RotationKind::EncryptionKey
            }
            Self::TrustBoth
            | Self::Spread
            | Self::RestartDns
            | Self::SignNew
            | Self::TrustNew
            | Self::DropTokens => RotationKind::Authorities,
        }
    }

    /// The one after it.
    pub fn next(self) -> Option<Stage> {
        match self {
            Self::AddKey => Some(Self::UseKey),
            Self::UseKey => Some(Self::Rewrite),
            Self::Rewrite => Some(Self::DropKey),
            Self::TrustBoth => Some(Self::Spread),
            Self::Spread => Some(Self::RestartDns),
            Self::RestartDns => Some(Self::SignNew),
            Self::SignNew => Some(Self::TrustNew),
            Self::TrustNew => Some(Self::DropTokens),
            Self::DropKey | Self::DropTokens => None,
        }
    }

    /// Whether machines are told something in it and start what reads that anew; otherwise it has one step.
    pub fn is_restart(self) -> bool {
        match self {
            Self::AddKey
            | Self::UseKey
            | Self::DropKey
            | Self::TrustBoth
            | Self::SignNew
            | Self::TrustNew
            | Self::DropTokens => true,
            Self::Rewrite | Self::Spread | Self::RestartDns => false,
        }
    }

    /// Has those who are told something in it be seen to differ.
    pub fn mark(self, secrets: &mut SecretsRevision) {
        let counter = match self {
            Self::AddKey | Self::UseKey | Self::DropKey | Self::DropTokens => {
                &mut secrets.control_plane
            }
            Self::TrustBoth | Self::SignNew | Self::TrustNew => &mut secrets.machines,
            Self::RestartDns => &mut secrets.addons,
            Self::Rewrite | Self::Spread => return,
        };
        *counter = counter.saturating_add(1);
    }

    /// What is the case in it, for people.
    pub fn says(self) -> &'static str {
        match self {
            Self::AddKey => "API servers learn to read with the new key",
            Self::UseKey => "API servers begin to write with the new key",
            Self::Rewrite => "Secrets are written again with the new key",
            Self::DropKey => "API servers forget the old key",
            Self::TrustBoth => "machines come to trust the old and the new authorities",
            Self::Spread => "pods are given the old and the new authority",
            Self::RestartDns => "cluster DNS is started anew, everything trusts both authorities",
            Self::SignNew => "machines get certificates of the new authorities, both are trusted",
            Self::TrustNew => "machines come to trust the new authorities alone",
            Self::DropTokens => "API servers forget the key that signed tokens before",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::AddKey => "add-key",
            Self::UseKey => "use-key",
            Self::Rewrite => "rewrite",
            Self::DropKey => "drop-key",
            Self::TrustBoth => "trust-both",
            Self::Spread => "spread",
            Self::RestartDns => "restart-dns",
            Self::SignNew => "sign-new",
            Self::TrustNew => "trust-new",
            Self::DropTokens => "drop-tokens",
        })
    }
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// How far it is.
    pub stage: Stage,
    /// Whether the one step of a stage that restarts nothing is done.
    #[serde(default)]
    pub done: bool,
    /// Whether it rests before the new authorities sign, until it is ordered again.
    #[serde(default)]
    pub prepare: bool,
    /// When the stage began.
    pub since: Timestamp,
    /// Who ordered it.
    pub started_by: String,
}

/// What comes next in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The stage that has begun has to be carried out.
    CarryOut,
    /// This stage begins.
    Enter(Stage),
    /// Nothing, before somebody orders it again or time has passed.
    Rest,
    /// It is over.
    Over,
}

impl Rotation {
    /// A rotation that begins.
    pub fn new(kind: RotationKind, prepare: bool, started_by: String) -> Self {
        Self {
            stage: kind.first(),
            done: false,
            prepare,
            since: Timestamp::now(),
            started_by,
        }
    }

    /// What comes next, when the stage's plan has no step left or has some.
    pub fn next(&self, complete: bool, now: Timestamp) -> Next {
        if !complete {
            return Next::CarryOut;
        }
        match self.stage {
            Stage::RestartDns if self.prepare => Next::Rest,
            Stage::TrustNew if now.ms_since(self.since) < TOKEN_KEY_KEPT_MS => Next::Rest,
            stage => stage.next().map_or(Next::Over, Next::Enter),
        }
    }

    /// When the former key for tokens may go, if that is all that is left.
    pub fn tokens_until(&self) -> Option<Timestamp> {
        let until = self.since.unix_ms().saturating_add(TOKEN_KEY_KEPT_MS);
        (self.stage == Stage::TrustNew).then(|| Timestamp::from_unix_ms(until))
    }

    /// Begins a stage.
    pub fn enter(&mut self, stage: Stage, now: Timestamp) {
        self.stage = stage;
        self.done = false;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_leads_to_the_next_once_it_is_complete() {
        use Next::{CarryOut, Enter, Over, Rest};
        use Stage::*;
        let began = Timestamp::from_unix_ms(1000);
        let soon = Timestamp::from_unix_ms(2000);
        let late = Timestamp::from_unix_ms(1000 + TOKEN_KEY_KEPT_MS);
        #[rustfmt::skip] // one stage per line, so that a missing one shows
        let cases = [
            // Stage, next when complete, when it is only to be prepared, when much time has passed.
            (AddKey,     Enter(UseKey),     Enter(UseKey),     Enter(UseKey)),
            (UseKey,     Enter(Rewrite),    Enter(Rewrite),    Enter(Rewrite)),
            (Rewrite,    Enter(DropKey),    Enter(DropKey),    Enter(DropKey)),
            (DropKey,    Over,              Over,              Over),
            (TrustBoth,  Enter(Spread),     Enter(Spread),     Enter(Spread)),
            (Spread,     Enter(RestartDns), Enter(RestartDns), Enter(RestartDns)),
            (RestartDns, Enter(SignNew),    Rest,              Enter(SignNew)),
            (SignNew,    Enter(TrustNew),   Enter(TrustNew),   Enter(TrustNew)),
            (TrustNew,   Rest,              Rest,              Enter(DropTokens)),
            (DropTokens, Over,              Over,              Over),
        ];
        assert_eq!(cases.map(|(stage, ..)| stage), Stage::ALL);
        for (stage, next, prepared, later) in cases {
            let mut rotation = Rotation::new(stage.kind(), false, "ann".to_owned());
            rotation.enter(stage, began);
            assert_eq!(rotation.next(false, soon), CarryOut, "{stage}");
            assert_eq!(rotation.next(false, late), CarryOut, "{stage}");
            assert_eq!(rotation.next(true, soon), next, "{stage}");
            assert_eq!(rotation.next(true, late), later, "{stage}");
            rotation.prepare = true;
            assert_eq!(rotation.next(true, soon), prepared, "{stage}");
        }
    }

    #[test]
    fn whoever_is_told_something_is_seen_to_differ() {
        for stage in Stage::ALL {
            let mut secrets = SecretsRevision::default();
            stage.mark(&mut secrets);
            let machines = secrets.machines + secrets.control_plane;
            assert_eq!(machines > 0, stage.is_restart(), "{stage}");
            assert_eq!(secrets.addons > 0, stage == Stage::RestartDns, "{stage}");
            let follows = stage.next().is_none_or(|next| next.kind() == stage.kind());
            assert!(follows, "{stage}");
        }
    }
}
