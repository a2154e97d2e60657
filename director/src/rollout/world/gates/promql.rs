//! What Prometheus is asked, and what its answer means.
//!
//! Conditions are PromQL's own, as alerting rules have them: a comparison leaves the samples that hold. Argo
//! Rollouts and Flagger compare outside of the query; here the query is the whole condition, and is the one to
//! be tried in Prometheus itself.

use serde::Deserialize;
use serde_json::Value;
use windlass_common::gate::PromqlExpect;

use super::http;
use crate::kubernetes::client::encode;

/// Largest answer. A condition has a few samples; a series is about 300 bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Longest text of a sample or an error that is repeated, characters.
const SHOWN_MAX: usize = 300;

/// The path of an instant query, without a slash in front.
pub(super) fn path(query: &str) -> String {
    format!("api/v1/query?query={}", encode(query))
}

/// Asks a Prometheus at a URL.
pub(super) async fn ask(url: &str, path: &str) -> Result<Vec<u8>, String> {
    let url = format!("{}/{path}", url.trim_end_matches('/'));
    let (status, body) = http::get(&url, Some(ANSWER_BYTES_MAX)).await?;
    // A query that Prometheus refuses is answered with a status of its own and says why.
    if status.is_success() || serde_json::from_slice::<Answer>(&body).is_ok() {
        Ok(body.to_vec())
    } else {
        Err(format!("is answered {status}"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status: String,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

/// Whether an answer of `/api/v1/query` is as expected; what is not.
pub(super) fn judge(answer: &[u8], expect: PromqlExpect) -> Result<(), String> {
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|error| format!("is answered in no words of Prometheus: {error}"))?;
    let Some(data) = answer.data.filter(|_| answer.status == "success") else {
        let error = short(&answer.error);
        return Err(format!("fails: {}: {error}", short(&answer.error_type)));
    };
    let samples = match (data.result_type.as_str(), &data.result) {
        ("vector", Value::Array(samples)) => samples.iter().map(of_vector).collect(),
        ("scalar", value) => vec![(String::new(), number(value))],
        (other, _) => {
            return Err(format!(
                "yields a {}; an instant vector or a scalar can be judged",
                short(other)
            ));
        }
    };
    match expect {
        PromqlExpect::Empty => match samples.first() {
            None => Ok(()),
            Some((metric, value)) => Err(format!(
                "yields {} samples, and none is expected; the first is {metric} {}",
                samples.len(),
                told(*value)
            )),
        },
        PromqlExpect::NonZero => {
            let holds = |value: &Option<f64>| value.is_some_and(|v| v != 0.0 && !v.is_nan());
            if samples.is_empty() {
                return Err("yields no samples".to_owned());
            }
            match samples.iter().find(|(_, value)| !holds(value)) {
                None => Ok(()),
                Some((metric, value)) => Err(format!("yields {metric} {}", told(*value))),
            }
        }
    }
}

/// A sample of a vector: its labels, and its value if it is a number.
fn of_vector(sample: &Value) -> (String, Option<f64>) {
    let labels = sample.get("metric").unwrap_or(&Value::Null);
    let value = sample.get("value").and_then(number);
    (short(&labels.to_string()), value)
}

/// The number in `[time, "number"]`.
fn number(pair: &Value) -> Option<f64> {
    pair.get(1)?.as_str()?.parse().ok()
}

fn told(value: Option<f64>) -> String {
    value.map_or("and no number".to_owned(), |value| value.to_string())
}

fn short(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = r#"{"metric":{"__name__":"up","job":"a"},"value":[1435781451.781,"1"]}"#;
    const DOWN: &str = r#"{"metric":{"__name__":"up","job":"b"},"value":[1435781451.781,"0"]}"#;
    const NAN: &str = r#"{"metric":{},"value":[1435781451.781,"NaN"]}"#;
    const HISTOGRAM: &str = r#"{"metric":{},"histogram":[1435781451.781,{"count":"1"}]}"#;

    fn vector(samples: &[&str]) -> String {
        let samples = samples.join(",");
        format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":[{samples}]}},"warnings":["w"]}}"#
        )
    }

    fn scalar(value: &str) -> String {
        format!(
            r#"{{"status":"success","data":{{"resultType":"scalar","result":[1435781451.781,"{value}"]}}}}"#
        )
    }

    #[test]
    fn a_condition_holds_when_it_leaves_samples_that_are_not_zero() {
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        let refused = r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#;
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            // answer,                       nonZero,               empty
            (vector(&[]),                    Some("no samples"),    None),
            (vector(&[UP]),                  None,                  Some("yields 1 samples")),
            (vector(&[UP, DOWN]),            Some("\"b\"} 0"),      Some("yields 2 samples")),
            (vector(&[NAN]),                 Some("NaN"),           Some("yields 1 samples")),
            (vector(&[HISTOGRAM]),           Some("no number"),     Some("no number")),
            (scalar("1"),                    None,                  Some("yields 1 samples")),
            (scalar("+Inf"),                 None,                  Some("yields 1 samples")),
            (scalar("0"),                    Some("0"),             Some("yields 1 samples")),
            (scalar("NaN"),                  Some("NaN"),           Some("yields 1 samples")),
            (matrix.to_owned(),              Some("a matrix"),      Some("a matrix")),
            (refused.to_owned(),             Some("parse error"),   Some("bad_data")),
            ("<html>".to_owned(),            Some("no words"),      Some("no words")),
        ];
        for (answer, non_zero, empty) in cases {
            for (expect, want) in [
                (PromqlExpect::NonZero, non_zero),
                (PromqlExpect::Empty, empty),
            ] {
                match (judge(answer.as_bytes(), expect), want) {
                    (Ok(()), None) => {}
                    (Err(why), Some(part)) => assert!(why.contains(part), "{answer}: {why}"),
                    (judged, _) => panic!("{answer}, {expect:?}: {judged:?}"),
                }
            }
        }
    }

    #[test]
    fn a_query_is_one_value_of_the_path() {
        let path = path("up{job=\"a&b\"} + 1 > 0");
        assert_eq!(
            path,
            "api/v1/query?query=up%7Bjob%3D%22a%26b%22%7D%20%2B%201%20%3E%200"
        );
    }
}
