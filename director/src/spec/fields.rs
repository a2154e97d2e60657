//! Reads the fields of one JSON object, remembering which were asked for, so that those nobody asked
//! for are reported.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::fault::{Faults, join, shown};

/// An object that is being read.
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Begins to read `value`, which has to be an object.
    pub(crate) fn open(value: &'a Value, path: &str, faults: &mut Faults) -> Option<Self> {
        let Some(map) = value.as_object() else {
            faults.add(path, shown(value), "an object");
            return None;
        };
        Some(Self {
            path: path.to_owned(),
            map,
            known: Vec::new(),
        })
    }

    /// Full path of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The field's value; `null` counts as not given.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A text that has to be there and to parse.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        faults: &mut Faults,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.take(key) else {
            faults.add(self.path(key), "not given", allowed);
            return None;
        };
        let read = value.as_str().and_then(read);
        if read.is_none() {
            faults.add(self.path(key), shown(value), allowed);
        }
        read
    }

    /// A text that parses, or the default when it is not given.
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        default: T,
        allowed: &str,
        faults: &mut Faults,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let Some(value) = self.take(key) else {
            return Some(default);
        };
        let read = value.as_str().and_then(read);
        if read.is_none() {
            faults.add(self.path(key), shown(value), allowed);
        }
        read
    }

    /// A whole number in a range, or the default when it is not given.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        default: u32,
        range: &RangeInclusive<u32>,
        unit: &str,
        faults: &mut Faults,
    ) -> Option<u32> {
        let Some(value) = self.take(key) else {
            return Some(default);
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        let number = number.filter(|n| range.contains(n));
        if number.is_none() {
            let allowed = format!(
                "a whole number of {unit}, {} to {}",
                range.start(),
                range.end()
            );
            faults.add(self.path(key), shown(value), allowed);
        }
        number
    }

    /// True or false, or the default when it is not given.
    pub(crate) fn flag(
        &mut self,
        key: &'static str,
        default: bool,
        faults: &mut Faults,
    ) -> Option<bool> {
        let Some(value) = self.take(key) else {
            return Some(default);
        };
        let read = value.as_bool();
        if read.is_none() {
            faults.add(self.path(key), shown(value), "true or false");
        }
        read
    }

    /// Ends the reading: fields nobody asked for are faults.
    pub(crate) fn close(self, faults: &mut Faults) {
        for (key, value) in self.map {
            if !self.known.contains(&key.as_str()) {
                let allowed = format!("no such field; known here: {}", self.known.join(", "));
                faults.add(join(&self.path, key), shown(value), allowed);
            }
        }
    }
}
