//! The settings of a machine, as JSON from its platform: refused, or written and read again the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use windlass_common::settings::Settings;

fuzz_target!(|bytes: &[u8]| {
    let Ok(settings) = serde_json::from_slice::<Settings>(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&settings).expect("settings are written as they were read");
    let again: Settings = serde_json::from_slice(&text).expect("and read again");
    assert_eq!(serde_json::to_vec(&again).expect("twice"), text);
    // A token is never shown, whatever it is; one of a letter may be in the words for it.
    let token = settings.token.expose();
    if token.len() >= 32 {
        assert!(!format!("{:?}", settings.token).contains(token));
    }
});
