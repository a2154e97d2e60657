//! The documented file, and what is refused.

use super::*;

fn dir() -> DataDir {
    DataDir::new(Path::new("/var/lib/windlass")).unwrap()
}

#[test]
fn the_documented_file_shows_the_defaults() {
    let example = Config::parse(EXAMPLE, &dir()).unwrap();
    assert_eq!(example, Config::parse("", &dir()).unwrap());
    assert_eq!(example.api.listen.to_string(), "127.0.0.1:7443");
    assert_eq!(
        example.stemcells.trusted_keys,
        Path::new("/var/lib/windlass/stemcells/trusted.pub")
    );
    assert_eq!(example.local.gateway().to_string(), "10.77.0.1");
    assert_eq!(example.gateway.artifacts.total_bytes_per_s, 100 << 20);
    assert_eq!(example.gateway.artifacts.agent_bytes_per_s, 50 << 20);
    assert_eq!(example.advertised()[0].to_string(), "10.77.0.1:7444");
}

#[test]
fn all_faults_come_at_once() {
    let text = r#"
log = "loud="
colour = "blue"
[api]
listen = "localhost"
names = ["ok.example", "not ok", 3]
[gateway]
listen = "0.0.0.0:0"
advertise = ["127.0.0.1:1"]
artifact_mib_per_s = 0
artifact_mib_per_s_per_agent = "fast"
[stemcells]
directory = ""
[provider.local]
name = "toolongaa"
cidr = "10.77.0.1/24"
runc = "./runc"
[provider.cloud]
[resurrector]
keep_for_forensics = "yes"
kept_max = 101
"#;
    let faults = Config::parse(text, &dir()).unwrap_err();
    let keys: Vec<&str> = faults.list().iter().map(|f| f.key.as_str()).collect();
    #[rustfmt::skip]
    assert_eq!(keys, [
        "log", "api.listen", "api.names[1]", "api.names[2]", "gateway.listen", "gateway.advertise[0]",
        "gateway.artifact_mib_per_s", "gateway.artifact_mib_per_s_per_agent",
        "stemcells.directory", "provider.local.name", "provider.local.cidr", "provider.local.runc",
        "provider.cloud", "resurrector.keep_for_forensics", "resurrector.kept_max", "colour",
    ]);
    assert!(
        faults
            .list()
            .iter()
            .all(|f| !f.allowed.is_empty() && !f.value.is_empty())
    );
}

#[test]
fn what_is_no_toml_is_one_fault_with_its_line() {
    let faults = Config::parse("log = \"info\"\n[api\n", &dir()).unwrap_err();
    assert_eq!(faults.list().len(), 1);
    assert_eq!(faults.list()[0].key, "line 2");
}

#[test]
fn a_missing_file_says_how_to_make_it() {
    let dir = DataDir::new(Path::new("/nonexistent/windlass")).unwrap();
    let error = Config::load(&dir).unwrap_err();
    assert!(
        error.to_string().contains("windlass director init"),
        "{error}"
    );
}
