//! A stemcell's manifest: refused, or written and read again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_common::stemcell::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&manifest).expect("a manifest is written as it was read");
    let again: Manifest = serde_json::from_slice(&text).expect("and read again");
    assert_eq!(manifest, again);
});
