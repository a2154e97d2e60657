//! Proof that an agent runs, which a machine that passes it on cannot make up.
//!
//! The director asks several machines of a cluster whether another one answers. Each opens a connection to
//! its peer endpoint and passes on a number that the director has drawn for this question alone. The agent
//! there signs the [`statement`] with its machine's key. So a machine that lies may hide that another one
//! lives, which others then tell, but never claim that a dead one does; and an answer of yesterday, or to
//! another question, is none.
//!
//! # Not here
//! Who is asked and what it means (the director); the wire ([`crate::wire::probe`]).

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::pki::MachineIdentity;

/// First bytes of a statement: a signature for anything else is not one of these.
const PURPOSE: &[u8] = b"windlass probe answer 1\0";

/// Drawn anew for each question to each machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// A new one, out of the operating system's randomness.
    ///
    /// # Errors
    /// It gave none.
    pub fn random() -> Result<Nonce, aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes)?;
        Ok(Nonce(bytes))
    }
}

/// What the agent that answers signs: the question, who answers, and who asked it.
pub fn statement(nonce: Nonce, answers: &MachineIdentity, asks: &MachineIdentity) -> Vec<u8> {
    let name = |identity: &MachineIdentity| Digest::of(identity.to_string().as_bytes());
    [
        PURPOSE,
        &nonce.0,
        name(answers).as_bytes(),
        name(asks).as_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::PrivateKey;

    #[test]
    fn an_answer_is_for_one_question_of_one_machine_to_one_machine() {
        let who = |machine: &str, incarnation: u32| -> MachineIdentity {
            format!("windlass://d1/clusters/demo/machines/{machine}/incarnations/{incarnation}")
                .parse()
                .unwrap()
        };
        let (answers, asks, nonce) = (who("demo-w-0", 1), who("demo-w-1", 1), Nonce([1; 16]));
        let key = PrivateKey::generate().unwrap();
        let said = statement(nonce, &answers, &asks);
        let signature = key.sign(&said).unwrap();
        assert!(key.public_key().has_signed(&said, &signature));
        for changed in [
            statement(Nonce([2; 16]), &answers, &asks),
            statement(nonce, &who("demo-w-0", 2), &asks),
            statement(nonce, &answers, &who("demo-w-1", 2)),
            statement(nonce, &asks, &answers),
        ] {
            assert!(!key.public_key().has_signed(&changed, &signature));
        }
    }
}
