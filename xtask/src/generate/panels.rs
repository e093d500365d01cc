//! Parts of dashboards, as JSON for Grafana.

use serde_json::{Value, json};

/// The data source, which is chosen when a dashboard is imported.
const SOURCE: &str = "${datasource}";

/// How a panel shows the answers to its queries.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Lines over time.
    Lines,
    /// Areas over time, one on top of the other.
    Stacked,
    /// When a value was 0 or 1.
    States,
    /// One number for the present.
    Number,
    /// A table of the present.
    Table,
}

/// A query, and the name of each line of the answer.
pub(super) type Query = (&'static str, &'static str);

/// A panel.
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) shape: Shape,
    pub(super) unit: &'static str,
    /// In 24ths of the width.
    pub(super) width: u32,
    pub(super) queries: &'static [Query],
}

/// A dashboard.
pub(super) struct Dashboard {
    pub(super) uid: &'static str,
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    /// The names of variables, each with the metric that has it as a label.
    pub(super) variables: &'static [(&'static str, &'static str)],
    pub(super) panels: &'static [Panel],
}

impl Dashboard {
    /// Returns the dashboard as Grafana imports it.
    pub(super) fn json(&self) -> Value {
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["fdtracker"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "links": [{"title": "fdtracker", "type": "dashboards", "tags": ["fdtracker"], "keepTime": true, "includeVars": true}],
            "templating": {"list": self.variables()},
            "panels": self.panels(),
        })
    }

    fn variables(&self) -> Vec<Value> {
        let source = json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"});
        let mut chosen: Vec<&str> = Vec::new();
        let mut list = vec![source];
        for (name, metric) in self.variables {
            let earlier: Vec<String> = chosen.iter().map(|name| format!("{name}=~\"${name}\"")).collect();
            list.push(json!({
                "name": name,
                "label": name,
                "type": "query",
                "datasource": {"type": "prometheus", "uid": SOURCE},
                "query": format!("label_values({metric}{{{}}}, {name})", earlier.join(", ")),
                "refresh": 2,
                "includeAll": true,
                // This also matches what has no such label, such as a container without a pod.
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
                "multi": true,
                "sort": 1,
            }));
            chosen.push(name);
        }
        list
    }

    /// Places the panels from left to right, in rows of equal height.
    fn panels(&self) -> Vec<Value> {
        const WIDTH: u32 = 24;
        const HEIGHT: u32 = 8;
        let (mut x, mut y) = (0, 0);
        let mut panels = Vec::new();
        for (id, panel) in (1_u32..).zip(self.panels) {
            if x + panel.width > WIDTH {
                (x, y) = (0, y + HEIGHT);
            }
            panels.push(panel.json(id, &json!({"x": x, "y": y, "w": panel.width, "h": HEIGHT})));
            x += panel.width;
        }
        panels
    }
}

impl Panel {
    fn json(&self, id: u32, place: &Value) -> Value {
        let (kind, options) = match self.shape {
            Shape::Lines | Shape::Stacked => {
                ("timeseries", json!({"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}}))
            }
            Shape::States => ("state-timeline", json!({"mergeValues": true, "showValue": "never"})),
            Shape::Number => {
                ("stat", json!({"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}))
            }
            Shape::Table => ("table", json!({"showHeader": true})),
        };
        json!({
            "id": id,
            "gridPos": place,
            "title": self.title,
            "description": self.about,
            "type": kind,
            "datasource": {"type": "prometheus", "uid": SOURCE},
            "options": options,
            "fieldConfig": {"defaults": self.field(), "overrides": []},
            "targets": self.targets(),
        })
    }

    fn field(&self) -> Value {
        let unit = self.unit;
        match self.shape {
            Shape::Stacked => {
                json!({"unit": unit, "custom": {"stacking": {"mode": "normal"}, "fillOpacity": 20}})
            }
            Shape::States => json!({"unit": unit, "mappings": [{"type": "value", "options": {
                "0": {"text": "no", "color": "red"},
                "1": {"text": "yes", "color": "green"},
            }}]}),
            Shape::Lines | Shape::Number | Shape::Table => json!({"unit": unit}),
        }
    }

    fn targets(&self) -> Vec<Value> {
        let table = matches!(self.shape, Shape::Table);
        let target = |(name, (expr, legend)): (char, &Query)| {
            json!({
                "refId": name.to_string(),
                "datasource": {"type": "prometheus", "uid": SOURCE},
                "expr": expr,
                "legendFormat": legend,
                "instant": table,
                "range": !table,
                "format": if table { "table" } else { "time_series" },
            })
        };
        ('A'..).zip(self.queries).map(target).collect()
    }
}
