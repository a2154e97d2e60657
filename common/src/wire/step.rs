//! A step as two frames: the header that every kind shares, and the kind's own body.

use super::frame::{Frame, FrameError};
use super::message::{Body, StepHeader};
use crate::limits::{STEP_LABEL_BYTES_MAX, STEP_LABELS_MAX};
use crate::step::{
    AgentUpgrade, Collect, Configure, Disk, Etcd, EtcdData, Evict, Exec, Fetch, Gate, Hold, Keys,
    STEP_ID_MAX, Service, Step, StepRequest,
};

/// Label with the name of the operator who asked for a step.
pub const OPERATOR: &str = "operator";
/// Label with the request it was part of, as in the director's audit log.
pub const REQUEST: &str = "request";

/// Splits a request into the two frames that go over the wire.
pub fn to_frames(request: &StepRequest) -> Result<[Frame; 2], FrameError> {
    let header = StepHeader {
        id: request.id.clone(),
        epoch: request.epoch,
        deadline_ms: request.deadline_ms,
        labels: request.labels.clone(),
    };
    let body = match &request.step {
        Step::Fetch(body) => Frame::of(body),
        Step::Keys(body) => Frame::of(body),
        Step::Configure(body) => Frame::of(body),
        Step::Disk(body) => Frame::of(body),
        Step::Service(body) => Frame::of(body),
        Step::Gate(body) => Frame::of(body),
        Step::Collect(body) => Frame::of(body),
        Step::Exec(body) => Frame::of(body),
        Step::AgentUpgrade(body) => Frame::of(body),
        Step::Etcd(body) => Frame::of(body),
        Step::EtcdData(body) => Frame::of(body),
        Step::Evict(body) => Frame::of(body),
        Step::Hold(body) => Frame::of(body),
    }?;
    Ok([Frame::of(&header)?, body])
}

/// Puts a request together again. A kind that this release does not know is
/// [`FrameError::Unexpected`].
pub fn from_frames(header: StepHeader, body: &Frame) -> Result<StepRequest, FrameError> {
    if header.id.0.len() > STEP_ID_MAX || header.labels.len() > STEP_LABELS_MAX {
        return Err(FrameError::TooLong {
            kind: StepHeader::KIND,
            bytes: header.id.0.len().max(header.labels.len()),
            max: STEP_ID_MAX,
        });
    }
    let texts = header.labels.iter().flat_map(|(name, value)| [name, value]);
    let longest = texts.map(String::len).max().unwrap_or(0);
    if longest > STEP_LABEL_BYTES_MAX {
        return Err(FrameError::TooLong {
            kind: StepHeader::KIND,
            bytes: longest,
            max: STEP_LABEL_BYTES_MAX,
        });
    }
    let step = match body.kind {
        Fetch::KIND => Step::Fetch(body.body()?),
        Keys::KIND => Step::Keys(body.body()?),
        Configure::KIND => Step::Configure(body.body()?),
        Disk::KIND => Step::Disk(body.body()?),
        Service::KIND => Step::Service(body.body()?),
        Gate::KIND => Step::Gate(body.body()?),
        Collect::KIND => Step::Collect(body.body()?),
        Exec::KIND => Step::Exec(body.body()?),
        AgentUpgrade::KIND => Step::AgentUpgrade(body.body()?),
        Etcd::KIND => Step::Etcd(body.body()?),
        EtcdData::KIND => Step::EtcdData(body.body()?),
        Evict::KIND => Step::Evict(body.body()?),
        Hold::KIND => Step::Hold(body.body()?),
        got => {
            return Err(FrameError::Unexpected {
                got,
                want: Fetch::KIND,
            });
        }
    };
    Ok(StepRequest {
        id: header.id,
        epoch: header.epoch,
        deadline_ms: header.deadline_ms,
        step,
        labels: header.labels,
    })
}
