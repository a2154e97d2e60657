//! Where secrets could be seen: arguments and environments of processes, logs, and what the API answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use windlass_director::client::{Client, ClientError, Context};

use super::{Canaries, Leak};

/// Shortest pause between two looks at all processes.
const LOOK: Duration = Duration::from_millis(25);
/// How long an answer that goes on is read.
const STREAM: Duration = Duration::from_secs(3);
/// A name that nothing has.
const NOBODY: &str = "nobody-has-this-name";
/// The description of the API.
const OPENAPI: &str = include_str!("../../../docs/openapi.json");
/// Methods that change something; they are asked about nobody.
const CHANGES: [&str; 4] = ["post", "put", "patch", "delete"];

/// Something that was read, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// For people.
    pub name: String,
    /// All of it.
    pub content: Vec<u8>,
}

/// Secrets of `canaries` in these places.
pub fn leaks<'a>(
    canaries: &Canaries,
    places: impl IntoIterator<Item = &'a Place>,
) -> BTreeSet<Leak> {
    let found = |place: &Place| canaries.found_in(&place.name, &place.content);
    places.into_iter().flat_map(found).collect()
}

/// Arguments and environments that processes had; of the host, of machines that are containers on it, and of their
/// pods.
#[derive(Debug, Default)]
pub struct Processes(BTreeSet<Place>);

impl Processes {
    /// Reads those of all processes that there are now.
    pub fn look(&mut self) -> Result<()> {
        for entry in fs::read_dir("/proc").context("cannot list /proc")? {
            let path = entry.context("cannot list /proc")?.path();
            let is_process = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
            for of in ["cmdline", "environ"].iter().filter(|_| is_process) {
                // A process that has ended since the listing is no process; one that even root may not read is the
                // host's own, and nobody else could read a secret there.
                let content = fs::read(path.join(of)).unwrap_or_default();
                if !content.is_empty() {
                    let program = content.split(|byte| *byte == 0).next().unwrap_or_default();
                    let program =
                        String::from_utf8_lossy(&program[..program.len().min(60)]).into_owned();
                    let name = match *of {
                        "cmdline" => format!("arguments of {program}"),
                        _ => "the environment of a process".to_owned(),
                    };
                    self.0.insert(Place { name, content });
                }
            }
        }
        Ok(())
    }

    /// All that was read.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter()
    }
}

/// Looks at all processes again and again, so that those that live for a moment are seen as well as a look can; until
/// stopped or dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Processes>>>,
}

impl Watch {
    /// Begins.
    pub fn start() -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&looks));
        let thread = std::thread::spawn(move || {
            let mut seen = Processes::default();
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                seen.look()?;
                counted.fetch_add(1, Ordering::Relaxed);
                // Looking takes a third of a core at most.
                std::thread::sleep(LOOK.max(2 * began.elapsed()));
            }
            Ok(seen)
        });
        Watch {
            stop,
            looks,
            thread: Some(thread),
        }
    }

    /// How often all processes were looked at so far.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Ends, and says what was seen.
    pub fn stop(mut self) -> Result<Processes> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs until it is stopped")?;
        thread
            .join()
            .map_err(|_| anyhow!("the look at processes panicked"))?
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All files beneath `directory` that `wanted` says yes to by their names; links are not followed. What goes away
/// meanwhile is left out.
pub fn files(directory: &Path, wanted: impl Fn(&Path) -> bool) -> Vec<Place> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && wanted(&path) => left.push(path),
                Ok(kind) if kind.is_file() && wanted(&path) => {
                    let name = path.display().to_string();
                    found.extend(fs::read(&path).ok().map(|content| Place { name, content }));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
    found
}

/// What the API answered.
#[derive(Debug, Default)]
pub struct Replies {
    /// Answers, as they were said.
    pub answers: Vec<Place>,
    /// Refusals.
    pub refusals: Vec<Place>,
}

/// Asks for everything that the API has, as the operator of the context at `path`: each route that is a `GET`, about
/// each thing that there is and about one that there is not; and has each other route that names something refuse to
/// change what there is not.
///
/// No `GET` hands out credentials: `POST …/credentials` and `POST …/token` do, and what they answer is not looked at.
pub fn replies(path: &Path) -> Result<Replies> {
    let client = Client::new(Context::load(path).context("cannot read the operator's context")?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut replies = Replies::default();
        for route in routes("get")? {
            for path in filled(&client, &route).await? {
                replies.get(&client, &path).await;
            }
        }
        for method in CHANGES {
            for route in routes(method)?.iter().filter(|route| route.contains('{')) {
                replies
                    .refused(&client, method, &about(route, NOBODY))
                    .await;
            }
        }
        Ok(replies)
    })
}

/// The paths with a method.
fn routes(method: &str) -> Result<Vec<String>> {
    let api: Value = serde_json::from_str(OPENAPI).context("the description of the API")?;
    let paths = api["paths"].as_object().context("it has paths")?;
    let with = paths
        .iter()
        .filter(|(_, methods)| methods.get(method).is_some());
    let found: Vec<String> = with.map(|(path, _)| path.clone()).collect();
    ensure!(!found.is_empty(), "the API has no {method}");
    Ok(found)
}

/// A route with `name` in the place of each parameter.
fn about(route: &str, name: &str) -> String {
    let part = |part: &str| {
        if part.starts_with('{') {
            name.to_owned()
        } else {
            part.to_owned()
        }
    };
    route.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// A route about everything that there is, and about nobody; with what it has to be asked.
async fn filled(client: &Client, route: &str) -> Result<Vec<String>> {
    let mut paths = vec![String::new()];
    for part in route.split('/').skip(1) {
        let Some(parameter) = part
            .strip_prefix('{')
            .and_then(|part| part.strip_suffix('}'))
        else {
            paths
                .iter_mut()
                .for_each(|path| *path = format!("{path}/{part}"));
            continue;
        };
        let mut named = Vec::new();
        for path in &paths {
            named.push(format!("{path}/{NOBODY}"));
            match client.get(path).await {
                Ok(list) => {
                    named.extend(names(&list, parameter).map(|name| format!("{path}/{name}")))
                }
                // Of nobody there is nothing.
                Err(ClientError::Problem(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("GET {path}")),
            }
        }
        paths = named;
    }
    let query = match route {
        "/v1/machines/{name}/logs" => "?lines=10000&diagnostics=true",
        "/v1/machines/{name}/command" => "?argv=true",
        "/v1/audit" => "?limit=1000",
        _ => "",
    };
    paths.iter_mut().for_each(|path| path.push_str(query));
    Ok(paths)
}

/// Names of what is in a list.
fn names<'a>(list: &'a Value, parameter: &'a str) -> impl Iterator<Item = &'a str> {
    let items = list.as_array().or_else(|| list["items"].as_array());
    let name = move |item: &'a Value| {
        item[parameter]
            .as_str()
            .or_else(|| item["spec"][parameter].as_str())
    };
    items.into_iter().flatten().filter_map(name)
}

impl Replies {
    async fn get(&mut self, client: &Client, path: &str) {
        let name = format!("GET {path}");
        let mut content = Vec::new();
        // One that goes on is left after a while.
        let ended = tokio::time::timeout(STREAM, client.download(path, &mut content)).await;
        match ended {
            Ok(Err(error)) => self.refusals.push(refusal(name, &error)),
            Ok(Ok(_)) | Err(_) => self.answers.push(Place { name, content }),
        }
    }

    async fn refused(&mut self, client: &Client, method: &str, path: &str) {
        // No JSON: whatever it is about, it is refused.
        let body = || "{".to_owned();
        let name = format!("{} {path}", method.to_uppercase());
        let answer = match method {
            "post" => client.post(path, body()).await,
            "put" => client.put(path, body()).await,
            "patch" => client.patch(path, body()).await,
            _ => client.delete(path).await,
        };
        match answer {
            Err(error) => self.refusals.push(refusal(name, &error)),
            Ok(answer) => self.answers.push(Place {
                name,
                content: answer.to_string().into_bytes(),
            }),
        }
    }
}

fn refusal(name: String, error: &ClientError) -> Place {
    let said = match error {
        ClientError::Problem(problem) => {
            serde_json::to_vec(problem).unwrap_or_else(|_| format!("{problem:?}").into_bytes())
        }
        other => format!("{other:?}").into_bytes(),
    };
    Place {
        name,
        content: said,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use serde_json::json;

    use super::*;
    use crate::wait::until;

    #[test]
    fn a_secret_in_arguments_or_environment_is_found() {
        let (argument, variable) = ("argument-4f1c9d5e2b7a8036", "variable-8c2e6a1f9b3d7054");
        let mut canaries = Canaries::default();
        canaries.text("an argument", argument);
        canaries.text("a variable", variable);
        let leaks_now = || {
            let mut seen = Processes::default();
            seen.look().unwrap();
            leaks(&canaries, seen.places())
        };
        assert_eq!(leaks_now(), BTreeSet::new());
        // It says that it runs, and lives until its input ends.
        let mut child = Command::new("sh")
            .args(["-c", "echo; read -r line", "name", argument])
            .env("PLANTED", variable)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found: Vec<String> = leaks_now().iter().map(ToString::to_string).collect();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(
            found,
            [
                "arguments of sh has an argument, as text",
                "the environment of a process has a variable, as text"
            ]
        );
        assert_eq!(leaks_now(), BTreeSet::new());
    }

    #[test]
    fn a_watch_keeps_what_it_saw() {
        let watch = Watch::start();
        let canary = "watched-3b9e51d7c0a2f846";
        let mut canaries = Canaries::default();
        canaries.text("an argument", canary);
        let mut child = Command::new("sh")
            .args(["-c", "read -r line", "name", canary])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        // The second look that ends from now on has begun since.
        let looks = watch.looks();
        until("it was looked", Duration::from_secs(20), || {
            Ok((watch.looks() >= looks + 2).then_some(()))
        })
        .unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(leaks(&canaries, watch.stop().unwrap().places()).len(), 1);
    }

    #[test]
    fn files_are_found_beneath_and_left_out_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a.log", "leak-0123456789abcdef");
        put("deep/er/b.log", "leak-0123456789abcdef");
        put("journal/c.log", "leak-0123456789abcdef");
        std::os::unix::fs::symlink("a.log", directory.path().join("d.log")).unwrap();
        let mut canaries = Canaries::default();
        canaries.text("a token", "leak-0123456789abcdef");
        let found = leaks(
            &canaries,
            &files(directory.path(), |path| !path.ends_with("journal")),
        );
        let names: Vec<&str> = found
            .iter()
            .map(|leak| leak.place.rsplit('/').next().unwrap())
            .collect();
        assert_eq!(names, ["a.log", "b.log"]);
    }

    #[test]
    fn routes_are_asked_about_what_there_is() {
        let all = routes("get").unwrap();
        for route in [
            "/v1/machines/{name}",
            "/v1/tasks/{id}/events",
            "/v1/audit",
            "/metrics",
        ] {
            assert!(all.iter().any(|other| other == route), "{route}");
        }
        assert_eq!(
            about("/v1/clusters/{name}/backups/{backup}", "x"),
            "/v1/clusters/x/backups/x"
        );
        let list = json!([{"id": "t-1"}, {"id": "t-2"}]);
        assert_eq!(names(&list, "id").collect::<Vec<_>>(), ["t-1", "t-2"]);
        let list = json!({"items": [{"spec": {"name": "demo"}}, {"other": 1}]});
        assert_eq!(names(&list, "name").collect::<Vec<_>>(), ["demo"]);
    }
}
