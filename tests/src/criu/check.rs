//! Compares what `fdtracker check` says with what CRIU said.

use serde_json::Value;

use super::log::Line;

/// Returns whether `check` predicted the verdict, and the message if there is one.
pub fn agrees(check: &Value, verdict: &str, cause: &[&Line]) -> bool {
    let said = check.get("verdict").and_then(Value::as_str).unwrap_or_default();
    match verdict {
        "dumped" => said == "ok",
        "refused" => {
            // Skips unknown blockers, and compares the first one that is known.
            let blockers = check.get("blockers").and_then(Value::as_array).into_iter().flatten();
            let first = blockers.into_iter().find(|blocker| blocker["verdict"] != "unknown");
            let message = first.and_then(|blocker| blocker.get("message")).and_then(Value::as_str);
            let foretold = message.is_some_and(|message| cause.iter().any(|line| line.text == message));
            matches!(said, "blocked" | "needs_option") && (foretold || cause.is_empty())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(text: &str) -> Line {
        Line { text: text.into(), ..Line::default() }
    }

    #[test]
    fn a_dump_agrees_with_ok_alone() {
        assert!(agrees(&json!({"verdict": "ok"}), "dumped", &[]));
        assert!(!agrees(&json!({"verdict": "unknown"}), "dumped", &[]));
        assert!(!agrees(&json!({"failed": "no such command"}), "dumped", &[]));
    }

    #[test]
    fn a_refusal_agrees_with_a_blocker_of_the_same_message() {
        let (cause, other) = (line("Can't dump file 3 of that type"), line("Unsupported"));
        let unknown = json!({"verdict": "unknown", "message": ""});
        let blocker = json!({"verdict": "blocked", "message": cause.text});
        let check = json!({"verdict": "blocked", "blockers": [unknown, blocker]});
        assert!(agrees(&check, "refused", &[&other, &cause]));
        assert!(!agrees(&check, "refused", &[&other]));
        assert!(!agrees(&check, "dumped", &[]));
        assert!(!agrees(&json!({"verdict": "ok"}), "refused", &[&cause]));
        assert!(!agrees(&check, "hung", &[&cause]));
    }
}
