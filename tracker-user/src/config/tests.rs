use std::time::Duration;

use clap::{Arg, ArgAction, value_parser};

use super::*;

fn command() -> Command {
    let flag = |name: &'static str| Arg::new(name).long(name).help("Help");
    let duration = |text: &str| match text.strip_suffix('s').and_then(|n| n.parse().ok()) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err("it must be a duration, such as 30s"),
    };
    let agent = Command::new("agent")
        .arg(flag("web.listen-address").action(ArgAction::Append).default_value("here"))
        .arg(flag("interval").value_parser(duration).default_value("30s"))
        .arg(flag("live").action(ArgAction::SetTrue))
        .arg(flag("max-fds").value_parser(value_parser!(u32).range(1..=1000)).default_value("64"))
        .arg(flag("feeder").value_parser(["kprobe", "tracepoint"]))
        .arg(
            Arg::new("config_file")
                .long(FILE)
                .value_parser(value_parser!(PathBuf))
                .default_value("/nonexistent"),
        )
        .arg(Arg::new("config_check").long("config.check").action(ArgAction::SetTrue));
    Command::new("fdtracker")
        .arg(flag("log-level").global(true))
        .subcommand(agent)
        .subcommand(Command::new("ls"))
}

/// Parses a file, variables and a command line.
fn parse(file: &str, variables: &[(&str, &str)], line: &str) -> Result<Parsed, ConfigError> {
    let path = temporary(file);
    let words = line.split_whitespace().map(OsString::from);
    let arguments = ["fdtracker", "agent", "--config.file"].map(OsString::from).into_iter();
    let invocation = Invocation {
        arguments: arguments.chain([path.clone().into()]).chain(words).collect(),
        variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
    };
    let parsed = invocation.parse(command(), "agent");
    fs::remove_file(path).unwrap();
    parsed
}

fn temporary(text: impl AsRef<[u8]>) -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("fdtracker-config-{}-{n}.toml", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

fn settings(file: &str, variables: &[(&str, &str)], line: &str) -> Settings {
    parse(file, variables, line).unwrap().settings.unwrap()
}

/// Returns the line of one setting.
fn line(settings: &Settings, name: &str) -> String {
    let all = settings.to_string();
    all.lines().find(|line| line.trim_start_matches("# ").starts_with(name)).unwrap().to_owned()
}

fn error(file: &str) -> String {
    let error = parse(file, &[], "").map(|_| ()).unwrap_err().to_string();
    error.split_once(".toml:").map_or(error.clone(), |(_, rest)| rest.to_owned())
}

#[test]
fn flags_go_before_variables_and_these_before_the_file() {
    let file = "interval = \"1s\"\nweb.listen-address = [\"a\", \"b\"]\nlog-level = \"info\"";
    let nothing = settings("", &[], "");
    assert_eq!(line(&nothing, "interval"), r#"interval = "30s" # default"#);
    assert_eq!(line(&nothing, "feeder"), "# feeder is not set");
    assert_eq!(line(&nothing, "log-level"), "# log-level is not set");
    let in_file = settings(file, &[], "");
    assert_eq!(line(&in_file, "interval"), r#"interval = "1s" # file, line 1"#);
    assert_eq!(line(&in_file, "log-level"), r#"log-level = "info" # file, line 3"#);
    assert_eq!(line(&in_file, "web"), r#"web.listen-address = ["a", "b"] # file, line 2"#);
    let variables = [
        ("FDTRACKER_INTERVAL", "2s"),
        ("FDTRACKER_WEB_LISTEN_ADDRESS", "c, d,"),
        ("FDTRACKER_LOG_LEVEL", ""),
    ];
    let by_variables = settings(file, &variables, "");
    assert_eq!(line(&by_variables, "interval"), r#"interval = "2s" # environment: FDTRACKER_INTERVAL"#);
    assert_eq!(line(&by_variables, "log-level"), r#"log-level = "info" # file, line 3"#);
    assert!(line(&by_variables, "web").starts_with(r#"web.listen-address = ["c", "d"] # env"#));
    let flags = settings(file, &variables, "--interval 3s --log-level debug --web.listen-address e");
    assert_eq!(line(&flags, "interval"), r#"interval = "3s" # flag"#);
    assert_eq!(line(&flags, "log-level"), r#"log-level = "debug" # flag"#);
    assert_eq!(line(&flags, "web"), r#"web.listen-address = ["e"] # flag"#);
}

#[test]
fn what_parsed_is_what_clap_says() {
    let parsed = parse("max-fds = 0x1_0\nlive = true", &[("FDTRACKER_INTERVAL", "2s")], "").unwrap();
    let agent = parsed.matches.subcommand_matches("agent").unwrap();
    assert_eq!(agent.get_one::<u32>("max-fds"), Some(&16));
    assert_eq!(agent.get_one::<Duration>("interval"), Some(&Duration::from_secs(2)));
    assert!(agent.get_flag("live"));
}

#[test]
fn a_switch_can_be_turned_off_again() {
    let live = |file, variables: &[(&str, &str)], flags| line(&settings(file, variables, flags), "live");
    assert_eq!(live("", &[], ""), "live = false # default");
    assert_eq!(live("live = true", &[], ""), "live = true # file, line 1");
    assert_eq!(
        live("live = true", &[("FDTRACKER_LIVE", "0")], ""),
        "live = false # environment: FDTRACKER_LIVE"
    );
    assert_eq!(live("live = true", &[], "--live=false"), "live = false # flag");
    assert_eq!(live("", &[("FDTRACKER_LIVE", "false")], "--live"), "live = true # flag");
}

#[test]
fn an_empty_array_is_none() {
    let none = settings("web.listen-address = []", &[], "");
    assert_eq!(line(&none, "web"), "web.listen-address = [] # file, line 1");
}

#[test]
fn tables_and_dots_are_one() {
    let nested = settings("[web]\nlisten-address = [\"a\"]", &[], "");
    assert_eq!(line(&nested, "web"), r#"web.listen-address = ["a"] # file, line 2"#);
    assert_eq!(
        error("\"web.listen-address\" = [\"a\"]\nweb.listen-address = [\"b\"]"),
        "1: web.listen-address is set twice"
    );
    settings("[web]\n", &[], "");
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_what_is_right() {
    for (file, expected) in [
        ("\nintervall = \"1s\"", "2: no setting is called intervall: did you mean interval?"),
        (
            "[wbe]\nlisten-address = []",
            "2: no setting is called wbe.listen-address: did you mean web.listen-address?",
        ),
        ("[colour]", "1: no setting is called colour"),
        ("help = true", "1: no setting is called help"),
        ("interval = \"soon\"", "1: interval = \"soon\": it must be a duration, such as 30s"),
        ("interval = 30", "1: interval = 30: it must be a string, such as \"30\""),
        ("feeder = \"magic\"", "1: feeder = \"magic\": it must be one of kprobe, tracepoint"),
        ("feeder = [\"kprobe\"]", "1: feeder = [\"kprobe\"]: it must be one value, not an array"),
        ("web.listen-address = \"a\"", "1: web.listen-address = \"a\": it must be an array, such as [\"a\"]"),
        ("web.listen-address = [1]", "1: web.listen-address = 1: it must be a string, such as \"1\""),
        ("max-fds = 0", "1: max-fds = 0: 0 is not in 1..=1000"),
        ("max-fds = 1.5", "1: max-fds = 1.5: it must be a whole number"),
        ("live = \"true\"", "1: live = \"true\": it must be true or false"),
        ("config.file = \"x\"", "1: config.file can only be given on the command line"),
        ("config.check = true", "1: config.check can only be given on the command line"),
        ("live = true\nlive = false", "2: duplicate key"),
        ("live = ", "1: string values must be quoted, expected literal string"),
    ] {
        assert_eq!(error(file), expected, "{file}");
    }
}

#[test]
fn what_is_wrong_in_a_variable_is_told() {
    let error = |name, value| parse("", &[(name, value)], "").map(|_| ()).unwrap_err().to_string();
    assert_eq!(
        error("FDTRACKER_INTERVAL", "soon"),
        "environment: FDTRACKER_INTERVAL = \"soon\": it must be a duration, such as 30s"
    );
    assert!(error("FDTRACKER_LIVE", "maybe").starts_with("environment: FDTRACKER_LIVE = \"maybe\": "));
    assert!(error("FDTRACKER_MAX_FDS", "-1").ends_with("-1 is not in 1..=1000"));
}

#[test]
fn variables_that_set_nothing_are_told() {
    let settings = settings(
        "",
        &[
            ("FDTRACKER_INTERVALL", "2s"),
            ("FDTRACKER_COLOUR", ""),
            ("FDTRACKER_PORT_10460_TCP", "tcp://10.0.0.1:10460"),
            ("FDTRACKER_CONFIG_FILE", "/elsewhere"),
            ("FDTRACKERS", "x"),
        ],
        "",
    );
    assert_eq!(
        settings.warnings,
        [
            "environment: FDTRACKER_INTERVALL sets nothing: did you mean FDTRACKER_INTERVAL?",
            "environment: FDTRACKER_COLOUR sets nothing"
        ]
    );
}

#[test]
fn files_that_are_none() {
    let read = |path: &Path| file::read(path, &[]).map(|_| ()).unwrap_err();
    let why = |path: &Path| match read(path) {
        ConfigError::Read(error) => error.source.to_string(),
        other => panic!("{other}"),
    };
    assert!(why(&std::env::temp_dir()).contains("directory"));
    assert!(why("/dev/zero".as_ref()).contains("device"));
    assert!(why("/nonexistent/file".as_ref()).contains("No such file"));
    for (text, expected) in
        [(vec![b'#'; (1 << 20) + 1], "longer than 1048576 bytes"), (b"a = \xff".to_vec(), "byte 4")]
    {
        let path = temporary(&text);
        assert!(why(&path).contains(expected));
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn the_file_may_be_named_by_a_variable_and_must_exist_then() {
    let invocation = |line: &str, value: &str| Invocation {
        arguments: line.split(' ').map(OsString::from).collect(),
        variables: vec![("FDTRACKER_CONFIG_FILE".into(), value.into())],
    };
    let parse = |line, value| invocation(line, value).parse(command(), "agent").map(|parsed| parsed.settings);
    let path = temporary("interval = \"7s\"");
    let settings = parse("fdtracker agent", path.to_str().unwrap()).unwrap().unwrap();
    assert_eq!(line(&settings, "interval"), r#"interval = "7s" # file, line 1"#);
    fs::remove_file(&path).unwrap();
    assert!(
        parse("fdtracker agent", path.to_str().unwrap())
            .unwrap_err()
            .to_string()
            .contains("read the configuration file")
    );
    // The default one may be missing.
    assert!(parse("fdtracker agent", "").unwrap().unwrap().file.is_none());
    // Other subcommands have no configuration.
    assert!(parse("fdtracker ls", "/nonexistent").unwrap().is_none());
}

#[test]
fn what_is_printed_can_be_read() {
    let first = settings(
        "[web]\nlisten-address = [\"a\\n\\\"b\", 'c']\n",
        &[("FDTRACKER_LIVE", "1")],
        "--feeder kprobe",
    );
    let second = settings(&first.to_string(), &[], "");
    assert!(first.changed(&second).is_empty(), "{first}\n{second}");
    assert!(!first.changed(&settings("", &[], "")).is_empty());
}

#[test]
fn what_has_changed_is_told_and_taken_over() {
    let mut running = settings("interval = \"1s\"\nlive = true", &[], "--max-fds 7");
    let new = settings("interval = \"2s\"\nmax-fds = 9", &[], "--max-fds 7");
    assert_eq!(running.changed(&new), ["interval", "live"]);
    running.adopt(&new, |name| name == "interval");
    assert_eq!(running.changed(&new), ["live"]);
}

#[test]
fn help_says_which_variable() {
    let mut arguments = vec![OsString::from("fdtracker"), "agent".into(), "--help".into()];
    let help =
        |arguments: &[OsString]| match (Invocation { arguments: arguments.to_vec(), variables: vec![] })
            .parse(command(), "agent")
        {
            Err(ConfigError::Usage(error)) => error.to_string(),
            _ => panic!(),
        };
    let text = help(&arguments);
    for expected in
        ["Help [env: FDTRACKER_INTERVAL] [default: 30s]", "--live[=<BOOL>]", "[env: FDTRACKER_CONFIG_FILE]"]
    {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    assert!(!text.contains("FDTRACKER_CONFIG_CHECK"));
    arguments[1] = "ls".into();
    assert!(!help(&arguments).contains("FDTRACKER"));
}

#[test]
fn any_text_is_read_without_panic() {
    use proptest::prelude::*;
    let command = command();
    let keys = Key::all(&command, "agent");
    proptest!(|(text in "[a-z.=\\[\\]\"' \n0-9{},-]{0,60}")| {
        let _ = file::File { name: "f", text: &text, keys: &keys }.parse();
    });
}
