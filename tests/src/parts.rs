//! What a machine's part in a change took, by what was done with it.

use std::collections::BTreeMap;

use serde_json::Value;

/// Seconds of one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Parts {
    /// Pods left, and what runs was stopped.
    pub drain: f64,
    /// The old machine was deleted and the new one made, until its agent connected.
    pub make: f64,
    /// It was configured and its components were started.
    pub switch: f64,
    /// From then on until it served.
    pub ready: f64,
}

impl Parts {
    /// The part that a step belongs to; `None` for steps that take no machine's time.
    fn of(&mut self, verb: &str) -> Option<&mut f64> {
        match verb {
            "drain" | "leave-endpoint" | "stop-components" => Some(&mut self.drain),
            "delete" | "create" | "attach-disk" | "await-agent" => Some(&mut self.make),
            "mount-disk" | "configure" | "start" => Some(&mut self.switch),
            "await-control-plane" | "join-endpoint" | "await-node" => Some(&mut self.ready),
            _ => None,
        }
    }
}

/// Parts of each machine, from the steps of a task as `windlass task show --json` prints it.
pub fn of(task: &Value) -> BTreeMap<String, Parts> {
    let mut machines: BTreeMap<String, Parts> = BTreeMap::new();
    for (key, step) in task["steps"].as_object().into_iter().flatten() {
        // Keys of later legs have them before.
        let mut words = key.split('/').skip_while(|word| *word != "machine");
        let (Some("machine"), Some(machine), Some(verb)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let at = |field: &str| step[field].as_str()?.parse::<jiff::Timestamp>().ok();
        let Some((began, ended)) = at("startedAt").zip(at("endedAt")) else {
            continue;
        };
        let mut parts = machines.get(machine).copied().unwrap_or_default();
        if let Some(part) = parts.of(verb) {
            *part += ended.duration_since(began).as_secs_f64();
            machines.insert(machine.to_owned(), parts);
        }
    }
    machines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_of_a_machine_add_up_by_part() {
        let step = |began: u32, ended: u32| {
            let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
            json!({"startedAt": at(began), "endedAt": at(ended)})
        };
        let task = json!({"steps": {
            "machine/a/drain": step(0, 3),
            "machine/a/stop-components": step(3, 4),
            "machine/a/create": step(4, 6),
            "leg-2/machine/a/await-node": step(7, 9),
            "machine/a/uncordon": step(9, 9),
            "machine/b/start": {"startedAt": "2026-01-01T00:00:00Z", "endedAt": null},
            "cluster/addons": step(0, 9),
        }});
        let wanted = Parts {
            drain: 4.0,
            make: 2.0,
            switch: 0.0,
            ready: 2.0,
        };
        assert_eq!(of(&task), [("a".to_owned(), wanted)].into());
    }
}
