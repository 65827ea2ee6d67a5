//! Connection strings: our reading against libpq's own, and what the values mean.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use databroker_sql::{
    Authorities, ConnectionString, ConnectionStringError, Environment, Password, TargetSession, TlsMode,
    connection_string_pairs,
};

/// Strings that both must read alike: those that are right, and those that are wrong.
const ALIKE: &[&str] = &[
    "",
    " ",
    "postgres://",
    "postgresql://",
    "postgres:///",
    "postgres://?",
    "postgres://host",
    "postgres://host/",
    "postgres://host:5433",
    "postgres://host:5433/data",
    "postgres://host:/data",
    "postgres://:5433/data",
    "postgres:///data",
    "postgres:///data?host=/var/run/postgresql",
    "postgres://%2Fvar%2Frun%2Fpostgresql/data",
    "postgres://user@host/data",
    "postgres://user:password@host/data",
    "postgres://user:@host/data",
    "postgres://:password@host/data",
    "postgres://:@host",
    "postgres://@host",
    "postgres://user:pass:word@host",
    "postgres://us%20er:p%40ss%2Fword%3a%25@host/da%20ta",
    "postgres://user:p+w@host/?application_name=a+b",
    "postgres://one,two/data",
    "postgres://one:1,two:2/data",
    "postgres://one:1,two/data",
    "postgres://one,two:2/data?target_session_attrs=any",
    "postgres://one,,three",
    "postgres://,",
    "postgres://[::1]",
    "postgres://[::1]:5433/data",
    "postgres://[2001:db8::1234]:5433,[::1]/data",
    "postgres://[::1],two:3",
    "postgres://[::1",
    "postgres://[]",
    "postgres://[::1]x",
    "postgres://host?sslmode=require",
    "postgres://host/data?sslmode=require&connect_timeout=10",
    "postgres://host/data?ssl=true",
    "postgres://host/data?ssl=false",
    "postgres://host/data?options=-c%20geqo%3Doff",
    "postgres://host/data?options=-c geqo%3Doff",
    "postgres://host/data?sslmode=",
    "postgres://host/data?sslmode",
    "postgres://host/data?=x",
    "postgres://host/data?a=b=c",
    "postgres://host/data?user=x&",
    "postgres://host/data?user=x&&port=1",
    "postgres://host/data?&",
    "postgres://host/data?user=one&user=two",
    "postgres://user@host/data?user=other",
    "postgres://host/data?us%65r=x",
    "postgres://host/data?unknown=x",
    "postgres://ho%st",
    "postgres://ho%4",
    "postgres://ho%zz",
    "postgres://ho%00st",
    "postgres://host/data#fragment",
    "postgres://host/data/more",
    "POSTGRES://host",
    "postgres:/host",
    "http://host",
    "host=one",
    "host = one",
    "host= one port =5433 dbname=data",
    "  host=one  ",
    "host=one\tport=2\nuser=x",
    "host=one,two port=1,2",
    "host=",
    "host= port=2",
    "host='' port=2",
    "password='a b'",
    "password='it\\'s'",
    "password='a\\\\b'",
    "password=a\\ b",
    "password=a\\'b",
    "password=a'b",
    "password='a'user=b",
    "password='a",
    "password=a\\",
    "password='a\\",
    "password='a\\'",
    "host",
    "host one",
    "host=one two",
    "=one",
    "host==one",
    "unknown=x",
    "user=ü dbname='€ 1'",
    "hostaddr=127.0.0.1 host=name sslmode=verify-full sslrootcert=/some/file",
    "options='-c search_path=a\\\\ b'",
    "target_session_attrs=read-write",
    "passfile=/a/b connect_timeout=3 application_name='x y' keepalives=0",
];

/// libpq, from the machine or from Debian's packages.
fn libpq(work: &Path) -> String {
    let named = "libpq.so.5".to_owned();
    let loads = |name: &str| {
        let program = "import ctypes, sys; ctypes.CDLL(sys.argv[1])";
        Command::new("python3")
            .args(["-c", program, name])
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    if loads(&named) {
        return named;
    }
    // Unpacked, not installed.
    let script = "apt-get download -qq libpq5 || { apt-get update -qq && apt-get download -qq libpq5; } && dpkg -x libpq5_*.deb .";
    let fetched = Command::new("sh")
        .args(["-c", script])
        .current_dir(work)
        .stdout(Stdio::null())
        .status();
    assert!(
        fetched.is_ok_and(|status| status.success()),
        "libpq is missing: install Debian's package libpq5"
    );
    let found = Command::new("find")
        .arg(work)
        .args(["-name", "libpq.so.5"])
        .output()
        .unwrap();
    let path = String::from_utf8(found.stdout)
        .unwrap()
        .lines()
        .next()
        .expect("libpq5 has no library")
        .to_owned();
    assert!(
        loads(&path),
        "libpq is there and lacks a library of its own: install Debian's package libpq5"
    );
    path
}

#[test]
fn strings_are_read_as_libpq_reads_them() {
    let work = tempfile::tempdir().unwrap();
    let mut python = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/libpq.py"))
        .arg(libpq(work.path()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing: install it");
    let mut input = python.stdin.take().unwrap();
    let lines: String = ALIKE
        .iter()
        .map(|text| format!("{}\n", serde_json::to_string(text).unwrap()))
        .collect();
    input.write_all(lines.as_bytes()).unwrap();
    drop(input);
    let output = String::from_utf8(python.wait_with_output().unwrap().stdout).unwrap();
    let answers: Vec<_> = output.lines().collect();
    assert_eq!(answers.len(), ALIKE.len());
    for (text, answer) in ALIKE.iter().zip(answers) {
        let theirs: Option<BTreeMap<String, String>> = serde_json::from_str(answer).unwrap();
        let ours = connection_string_pairs(text).map(|pairs| pairs.into_iter().collect::<BTreeMap<_, _>>());
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => assert_eq!(ours, theirs, "{text:?}"),
            (Err(_), None) => {}
            // Names are looked at later here.
            (Ok(ours), None) => assert!(
                ours.keys().any(|name| !is_known(name)),
                "libpq refuses {text:?}, and this gives {ours:?}"
            ),
            (Err(error), Some(theirs)) => panic!("{text:?} is {theirs:?} to libpq, and here: {error}"),
        }
    }
}

fn is_known(name: &str) -> bool {
    !matches!(
        read(&format!("{name}=1 user=x")),
        Err(ConnectionStringError::Unknown { .. } | ConnectionStringError::Misspelt { .. })
    )
}

fn read(text: &str) -> Result<ConnectionString, ConnectionStringError> {
    read_with(text, &[], &[])
}

fn read_with(
    text: &str,
    variables: &[(&str, &str)],
    files: &[&str],
) -> Result<ConnectionString, ConnectionStringError> {
    let variable = |wanted: &str| {
        variables
            .iter()
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| (*value).to_owned())
    };
    let exists = |path: &Path| files.iter().any(|file| Path::new(file) == path);
    ConnectionString::parse(
        text,
        &Environment {
            variable: &variable,
            exists: &exists,
        },
    )
}

fn hosts(text: &str) -> Vec<String> {
    read(text).unwrap().hosts.iter().map(ToString::to_string).collect()
}

#[test]
fn hosts_and_ports_go_together() {
    for (text, expected) in [
        ("postgres://u@one,two/d", vec!["one:5432", "two:5432"]),
        ("postgres://u@one:1,two:2/d", vec!["one:1", "two:2"]),
        ("postgres://u@one:1,two/d", vec!["one:1", "two:5432"]),
        ("user=u host=one,two port=7", vec!["one:7", "two:7"]),
        ("user=u host=one,two port=7,8", vec!["one:7", "two:8"]),
        ("user=u hostaddr=127.0.0.1,::1", vec!["127.0.0.1:5432", "[::1]:5432"]),
        ("user=u host=/run/pg", vec!["/run/pg/.s.PGSQL.5432"]),
        ("user=u", vec!["localhost:5432"]),
    ] {
        assert_eq!(hosts(text), expected, "{text}");
    }
    let socket = read_with("user=u port=7", &[], &["/tmp/.s.PGSQL.7"]).unwrap();
    assert_eq!(socket.hosts.first().unwrap().name, "/tmp");
}

#[test]
fn what_is_left_out_has_the_usual_meaning() {
    let plain = read("postgres://u@h").unwrap();
    assert_eq!(plain.database, "u");
    assert_eq!(plain.application_name, "databroker-host");
    assert_eq!(plain.target, TargetSession::Any);
    assert_eq!(plain.tls.mode, TlsMode::Prefer);
    assert_eq!(plain.connect_timeout, Some(Duration::from_secs(10)));
    assert_eq!(plain.pool.max_lifetime, Duration::from_secs(3600));
    assert_eq!(plain.pool.max_idle_time, Duration::from_secs(1800));
    assert!(plain.prepare_statements && plain.pool.max_connections >= 4);

    let variables = [
        ("PGUSER", "u"),
        ("PGPASSWORD", "p"),
        ("PGHOST", "h"),
        ("PGSSLMODE", "disable"),
        ("PGTZ", "x"),
    ];
    let from_environment = read_with("dbname=d", &variables, &[]).unwrap();
    assert_eq!(from_environment.password.as_ref().map(Password::expose), Some("p"));
    assert_eq!(from_environment.tls.mode, TlsMode::Disable);
    assert_eq!(read_with("user=other", &variables, &[]).unwrap().user, "other");
    for (variable, value, said) in [
        (
            "PGSERVICE",
            "main",
            "the environment has PGSERVICE, which is not supported: unset it",
        ),
        (
            "PGGSSENCMODE",
            "require",
            "the environment has PGGSSENCMODE=require, which",
        ),
        (
            "PGPORT",
            "abc",
            "PGPORT in the environment has something that is no number",
        ),
        (
            "PGSSLMODE",
            "on",
            "PGSSLMODE in the environment is \"on\": write disable,",
        ),
    ] {
        let refused = read_with("postgres://u@h", &[(variable, value)], &[]).unwrap_err();
        assert!(refused.to_string().starts_with(said), "{refused}");
    }
}

#[test]
fn all_targets_modes_and_sizes_are_read() {
    for (text, expected) in [
        ("any", TargetSession::Any),
        ("read-write", TargetSession::ReadWrite),
        ("read-only", TargetSession::ReadOnly),
        ("primary", TargetSession::Primary),
        ("standby", TargetSession::Standby),
        ("prefer-standby", TargetSession::PreferStandby),
    ] {
        assert_eq!(
            read(&format!("user=u target_session_attrs={text}")).unwrap().target,
            expected
        );
    }
    let pool = read(
        "postgres://u@h/d?pool_max_conns=9&pool_min_conns=2&pool_max_conn_lifetime=30m&pool_max_conn_idle_time=90s\
         &pool_health_check_period=5s&pool_max_conn_lifetime_jitter=1m&load_balance_hosts=random&default_query_exec_mode=exec",
    )
    .unwrap();
    assert_eq!((pool.pool.max_connections, pool.pool.min_connections), (9, 2));
    assert_eq!(pool.pool.max_lifetime, Duration::from_secs(1800));
    assert_eq!(pool.pool.lifetime_jitter, Duration::from_secs(60));
    assert_eq!(pool.pool.max_idle_time, Duration::from_secs(90));
    assert_eq!(pool.pool.health_check_period, Duration::from_secs(5));
    assert!(pool.load_balance && !pool.prepare_statements);

    let settings = read("user=u search_path=a options='-c geqo=off --work-mem=1MB -cjit=a\\\\ b'")
        .unwrap()
        .server_settings;
    let settings: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(settings, ["search_path=a", "geqo=off", "work_mem=1MB", "jit=a b"]);
}

#[test]
fn authorities_raise_the_mode() {
    let home = [("HOME", "/h")];
    let root = "/h/.postgresql/root.crt";
    let file = |path: &str| Some(Authorities::File(path.into()));
    for (text, files, mode, authorities) in [
        ("sslmode=require", vec![], TlsMode::Require, None),
        ("sslmode=require sslrootcert=/f", vec![], TlsMode::VerifyCa, file("/f")),
        ("sslmode=require", vec![root], TlsMode::VerifyCa, file(root)),
        ("sslmode=prefer sslrootcert=/f", vec![], TlsMode::Prefer, None),
        (
            "sslmode=verify-full",
            vec![],
            TlsMode::VerifyFull,
            Some(Authorities::System),
        ),
        ("sslmode=verify-full", vec![root], TlsMode::VerifyFull, file(root)),
        (
            "sslrootcert=system",
            vec![],
            TlsMode::VerifyFull,
            Some(Authorities::System),
        ),
    ] {
        let tls = read_with(&format!("user=u {text}"), &home, &files).unwrap().tls;
        assert_eq!((tls.mode, tls.authorities), (mode, authorities), "{text}");
    }
}

#[test]
fn what_cannot_be_used_is_told_by_name() {
    for (text, expected) in [
        (
            "user=u sslmod=require",
            "\"sslmod\", which is no setting of a connection; did you mean \"sslmode\"?",
        ),
        (
            "user=u zzz=1",
            "has after user a name that is no setting of a connection",
        ),
        ("zzz=1 user=u", "has a name that is no setting of a connection"),
        ("user=u sslcrl=/f", "sslcrl, which is not supported"),
        (
            "user=u gssencmode=require",
            "gssencmode=require, which is not supported",
        ),
        ("user=u service=x", "service, which is not supported"),
        (
            "user=u sslmode=on",
            "sslmode in the connection string is \"on\": write disable, allow,",
        ),
        ("user=u sslmode=require sslrootcert=system", "sslmode=verify-full only"),
        ("user=u target_session_attrs=master", "write any, read-write"),
        ("user=u host=a,b port=1,2,3", "names 3 ports for 2 hosts"),
        (
            "user=u host=a hostaddr=1.2.3.4,1.2.3.5",
            "names 2 addresses, and host 1 hosts",
        ),
        ("user=u hostaddr=name", "no IP address"),
        ("user=u connect_timeout=soon", "whole number of seconds"),
        ("user=u pool_max_conns=0", "whole number from 1"),
        (
            "user=u pool_max_conns=2 pool_min_conns=3",
            "more than the 2 of pool_max_conns",
        ),
        ("user=u pool_max_conn_lifetime=5", "length of time"),
        ("user=u sslcert=/f", "set both"),
        ("user=u options='geqo'", "options in the connection string"),
        ("host=h", "user in the connection string is missing"),
        ("nonsense", "neither a URL"),
    ] {
        let error = read(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn no_password_is_shown() {
    let secret = "sEcReT";
    for text in [
        format!("postgres://u:{secret}@h/d"),
        format!("host=h user=u password='{secret}' sslmode=disable"),
    ] {
        let shown = format!("{:?}", read(&text).unwrap());
        assert!(!shown.contains(secret), "{shown}");
    }
    // Passwords that were not encoded, and end up where they do not belong.
    for text in [
        format!("postgres://u:/{secret}@h/d"),
        format!("postgres://u:a@{secret}@h/d"),
        format!("postgres://u:a@b/{secret}@h/d"),
        format!("postgres://u:{secret}/a@h/d"),
        format!("postgres://u:%{secret}@h/d"),
        format!("user=u password=a {secret}"),
        format!("user=u password='a {secret}"),
        format!("user=u password=a {secret}=="),
        format!("user=u password=a {secret}='b"),
        format!("postgres://u:1/a?{secret}@h/d"),
        format!("postgres://u:1/a?{secret}=b@h/d"),
        format!("postgres://u:1/a?{secret}=b=c@h/d"),
        format!("postgres://u:1/a?{secret}=%zz@h/d"),
    ] {
        let error = read(&text).expect_err(&text);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(secret), "{text}: {shown}");
    }
}
