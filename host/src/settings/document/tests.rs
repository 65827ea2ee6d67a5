//! Configuration files: what is read from which YAML, and the line of each mistake.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;

/// What a file with this content is read as, or the line that is printed; the file is called `config.yaml`.
fn read(content: impl AsRef<[u8]>) -> Result<BTreeMap<String, Node>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, content).unwrap();
    let prefix = format!("{}/", folder.path().display());
    Document::read(&path)
        .map(|document| document.entries)
        .map_err(|mistake| mistake.to_string().replace(&prefix, ""))
}

/// A value in one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Absent => "-".to_owned(),
        Value::Unreadable => "!".to_owned(),
        Value::Text(text) => format!("{text:?}"),
        Value::List(parts) => {
            let parts: Vec<_> = parts.iter().map(|part| shown(&part.value)).collect();
            format!("[{}]", parts.join(" "))
        }
        Value::Map(parts) => {
            let parts: Vec<_> = parts
                .iter()
                .map(|(name, part)| format!("{name}={}", shown(&part.value)))
                .collect();
            format!("{{{}}}", parts.join(" "))
        }
    }
}

#[test]
fn values_are_taken_as_they_are_written() {
    for (content, expected) in [
        ("a: text", "\"text\""),
        ("a: 'it''s'", "\"it's\""),
        ("a: \"x\\ny\"", "\"x\\ny\""),
        ("a: true", "\"true\""),
        ("a: 5443", "\"5443\""),
        ("a: 0x10", "\"0x10\""),
        ("a: 007", "\"007\""),
        ("a: 1.50", "\"1.50\""),
        ("a: 1e5", "\"1e5\""),
        ("a: :443", "\":443\""),
        ("a: 10s # a comment", "\"10s\""),
        ("a: ''", "\"\""),
        ("a:", "-"),
        ("a: ~", "-"),
        ("a: null", "-"),
        ("a: !!str 12", "\"12\""),
        ("a: !mine text", "\"text\""),
        ("a: !!binary AAAA", "!"),
        ("a: !!bool 3", "!"),
        ("a: [!!int x]", "[!]"),
        ("a: |\n  one\n  two\n", "\"one\\ntwo\\n\""),
        ("a: [x, 1, 'y z']", "[\"x\" \"1\" \"y z\"]"),
        ("a:\n- x\n- y\n", "[\"x\" \"y\"]"),
        ("a:\n- cert: c\n  key: k\n", "[{cert=\"c\" key=\"k\"}]"),
        ("A: upper", "\"upper\""),
        ("{\"a\": \"json\", \"b\": [1]}", "\"json\""),
        ("\u{feff}a: marked", "\"marked\""),
        ("a: x\r\nb: y\r\n", "\"x\""),
        ("# only\n---\na: x\n", "\"x\""),
        ("b: &anchor 12\na: *anchor\n", "\"12\""),
        ("b: &anchor {a: merged}\n<<: *anchor\n", "\"merged\""),
        ("b: &anchor {a: merged}\n<<: *anchor\na: own\n", "\"own\""),
        ("b: &b {a: one}\nc: &c {a: two}\n<<: [*b, *c]\n", "\"one\""),
    ] {
        let entries = read(content).unwrap_or_else(|mistake| panic!("{content:?}: {mistake}"));
        let value = entries.get("a").unwrap_or_else(|| panic!("{content:?}: {entries:?}"));
        assert_eq!(shown(&value.value), expected, "{content:?}");
    }
}

#[test]
fn every_value_knows_its_place() {
    let entries = read("# head\ngrpc_address: :443\n\ncertificates:\n- cert: a\n  key: b\n").unwrap();
    let place = |name: &str| entries.get(name).unwrap().place.rsplit('/').next().unwrap().to_owned();
    assert_eq!(place("grpc_address"), "config.yaml:2:1");
    assert_eq!(place("certificates"), "config.yaml:4:1");
    let Value::List(parts) = &entries.get("certificates").unwrap().value else {
        panic!("no list");
    };
    let part = parts.first().unwrap();
    assert!(part.place.ends_with("config.yaml:5:3"), "{}", part.place);
}

#[test]
fn what_is_no_configuration_is_told_with_its_place() {
    let deep = format!("a:\n{}x: y\n", " ".repeat(300));
    let compact = format!("a: x\n{}x\n", "- ".repeat(100_000));
    let brackets = format!("a: {}", "[".repeat(100_000));
    let bomb = {
        let levels = (1..30).map(|level| format!("l{level}: &l{level} [*l{0}, *l{0}]\n", level - 1));
        format!("l0: &l0 [x]\n{}", levels.collect::<String>())
    };
    for (content, expected) in [
        (&b""[..], "config.yaml: it is empty"),
        (b" \n\t\n", "config.yaml: it is empty"),
        (b"# nothing\n", "config.yaml: it holds no settings"),
        (b"---\n", "config.yaml: it holds no settings"),
        (b"null\n", "config.yaml: it holds no settings"),
        (
            b"- a\n- b\n",
            "config.yaml: it holds a list where settings are expected",
        ),
        (
            b"just a text\n",
            "config.yaml: it holds a text where settings are expected",
        ),
        (b"a: x\n---\nb: y\n", "config.yaml: it holds 2 documents"),
        (b"a: x\nb: y\na: z\n", "config.yaml:3:1: \"a\" is there twice"),
        (b"a: x\nb: y\nA: z\n", "config.yaml:3:1: \"A\" is there twice"),
        (
            b"routes:\n- from: x\n  from: y\n",
            "config.yaml:3:3: \"from\" is there twice",
        ),
        (b"a: [x, y\nb: z\n", "config.yaml:2:"),
        (b"a: x\n\tb: y\n", "config.yaml:1:4: it is not YAML: "),
        (b"a: b: c\n", "config.yaml:1:5: it is not YAML: "),
        (b"a: 'x\n", "config.yaml:"),
        (b"a: *nobody\n", "config.yaml:1:4: it is not YAML: "),
        (b"<<: text\n", "config.yaml:1:1: << merges a text"),
        (b"a: x\nb: \xff\n", "config.yaml:2: it is not UTF-8"),
        (b"\x00\x01\x02", "config.yaml:1:"),
        (deep.as_bytes(), "config.yaml:2: it is nested too deeply"),
        (compact.as_bytes(), "config.yaml:2: it is nested too deeply"),
        (brackets.as_bytes(), "config.yaml:1:"),
        (bomb.as_bytes(), "config.yaml:"),
    ] {
        let beginning: String = String::from_utf8_lossy(content).chars().take(40).collect();
        let mistake = read(content).map(|_| ()).unwrap_err();
        assert!(
            mistake.starts_with(expected) && !mistake.contains('\n'),
            "{beginning:?}: {mistake}"
        );
    }
    let large = read(vec![b'#'; (1 << 20) + 1]).map(|_| ()).unwrap_err();
    assert!(
        large.starts_with("config.yaml: it holds more than 1048576 bytes"),
        "{large}"
    );
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for (path, expected) in [
        (folder.path(), "it is a directory, not a file"),
        (&pipe, "it is a pipe, not a file"),
        (Path::new("/dev/zero"), "it is a device, not a file"),
        (Path::new("/does/not/exist.yaml"), "No such file"),
    ] {
        let mistake = Document::read(path).map(|_| ()).unwrap_err().to_string();
        assert!(
            mistake.starts_with(&format!("{}: ", path.display())) && mistake.contains(expected),
            "{mistake}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn nothing_panics(content in "\\PC{0,200}", more in "[-a:\\[\\]{}&*!|>'\"%@#, \n\t?<]{0,200}") {
        let _ = read(&content);
        let _ = read(&more);
        let _ = inline("PLACE", &more);
    }
}
