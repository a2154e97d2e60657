//! A stemcells directory, a cache and a web server of a test's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use windlass_common::stemcell::Package;
use windlass_stemcell::base::Base;
use windlass_stemcell::files::Staging;
use windlass_stemcell::home::Home;
use windlass_stemcell::lock::Lock;
use windlass_stemcell::progress::Progress;
use windlass_stemcell::recipe::Recipe;
use windlass_stemcell::sources::{Cached, Kind, Mirror, Setting, SourceError, Sources};

/// Version of the only component of a [`World`].
pub(crate) const VERSION: &str = "1.2.3";

/// Everything that sources need, in a temporary directory.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cache: PathBuf,
    pub(crate) packages: Vec<Package>,
}

impl World {
    /// A world with one family `tool` that is defined by `family`, and a recipe that wants `tool`.
    pub(crate) fn new(family: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let world = World {
            dir,
            cache,
            packages: Vec::new(),
        };
        let lock = format!(
            "format = 1\n[[component]]\nfamily = \"tool\"\nversion = \"{VERSION}\"\n\
             released = \"2026-01-02T03:04:05Z\"\n\
             [[component]]\nfamily = \"kubernetes\"\nversion = \"1.0.0\"\n"
        );
        world.put("stemcells/components.lock.toml", &lock);
        world.put("stemcells/components/tool/family.toml", family);
        let none = "license = \"Apache-2.0\"\n[components]\n";
        world.put("stemcells/components/kubernetes/family.toml", none);
        let recipe = format!(
            "name = \"test\"\nkubernetes = \"1.0.0\"\n[debian]\nsuite = \"bookworm\"\n\
             sources = [\"deb http://deb.example.org/ bookworm main\"]\npackages = []\n\
             [systemd]\nenable = []\n[versions]\ntool = \"{VERSION}\"\n\
             [machine]\ncomponents = [\"tool\"]\n"
        );
        world.put("stemcells/recipes/test.toml", &recipe);
        world
    }

    /// Writes a file of the world.
    pub(crate) fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn home(&self) -> Home {
        Home::find(Some(&self.dir.path().join("stemcells"))).unwrap()
    }

    pub(crate) fn recipe(&self) -> Recipe {
        let home = self.home();
        let path = home.path("recipes/test.toml");
        Recipe::load(&path, &home, &Lock::load(&home).unwrap(), None).unwrap()
    }

    /// Gets the recipe's components; the lock is saved as a build would.
    pub(crate) fn obtain(
        &self,
        allowed: &[Kind],
        mirror: Option<Mirror>,
    ) -> Result<BTreeMap<String, Cached>, SourceError> {
        let (home, recipe) = (self.home(), self.recipe());
        let mut lock = Lock::load(&home).unwrap();
        fs::create_dir_all(&self.cache).unwrap();
        let staging = Staging::open(&self.cache)?;
        let base = Base {
            rootfs: self.dir.path().join("rootfs"),
            packages: self.packages.clone(),
        };
        let mut sources = Sources::new(Setting {
            home: &home,
            cache: &self.cache,
            staging: &staging,
            arch: "amd64",
            base: &base,
            mirror,
            allowed: allowed.to_vec(),
            progress: Progress::Silent,
        });
        let result = sources.obtain_all(&recipe, &mut lock);
        lock.save(&home).unwrap();
        result
    }

    /// Names of finished components in the cache.
    pub(crate) fn cached(&self) -> Vec<String> {
        let items = fs::read_dir(self.cache.join("components"))
            .into_iter()
            .flatten();
        items
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The program of the component, as it is in the cache.
    pub(crate) fn program(&self, components: &BTreeMap<String, Cached>) -> Vec<u8> {
        fs::read(components["tool"].dir.join("tool")).unwrap()
    }
}

/// Polls until `done`, or fails.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A web server on loopback that serves what it is given and notes what it is asked.
#[derive(Clone)]
pub(crate) struct Web {
    pub(crate) url: String,
    files: Arc<Mutex<BTreeMap<String, Option<Vec<u8>>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    pub(crate) fn start() -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let web = Web {
            url,
            files: Arc::default(),
            asked: Arc::default(),
        };
        let server = web.clone();
        thread::spawn(move || {
            let mut held = Vec::new(); // connections that are never answered
            for stream in listener.incoming().flatten() {
                held.extend(server.answer(stream));
            }
        });
        web
    }

    /// Serves bytes at a path.
    pub(crate) fn serve(&self, path: &str, bytes: impl AsRef<[u8]>) {
        self.files
            .lock()
            .unwrap()
            .insert(path.to_owned(), Some(bytes.as_ref().to_vec()));
    }

    /// Takes requests for a path and never answers them.
    pub(crate) fn hang(&self, path: &str) {
        self.files.lock().unwrap().insert(path.to_owned(), None);
    }

    /// How often a path was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|asked| *asked == path)
            .count()
    }

    fn answer(&self, mut stream: TcpStream) -> Option<TcpStream> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let path = line.split_whitespace().nth(1)?.to_owned();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        self.asked.lock().unwrap().push(path.clone());
        let found = self.files.lock().unwrap().get(&path).cloned();
        let (status, body) = match found {
            Some(None) => return Some(stream),
            Some(Some(body)) => ("200 OK", body),
            None => ("404 Not Found", b"no such file".to_vec()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body));
        None
    }
}

/// A mounted tmpfs of a few megabytes: a disk that is soon full.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(at: &Path, mebibytes: u32) -> SmallDisk {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={mebibytes}m");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("tmpfs"),
            at,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .expect("mounting needs root, as building stemcells does");
        SmallDisk(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A process that does not outlive its test.
pub(crate) struct Killed(pub(crate) std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory mounted at another place.
pub(crate) struct BindMount(PathBuf);

impl BindMount {
    pub(crate) fn new(from: &Path, at: &Path) -> BindMount {
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
        nix::mount::mount(Some(from), at, none, flags, none)
            .expect("mounting needs root, as building stemcells does");
        BindMount(at.to_owned())
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
