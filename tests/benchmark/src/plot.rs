//! The same figures as pictures, on logarithmic scales: a bar for each server's cost, workload by workload; and for each
//! workload how costs grow.

use std::fmt::Write as _;

use crate::report::{Row, SERVERS, Series, number, series, whole};

const WIDTH: f64 = 960.0;
const LABELS: f64 = 400.0;
const BAR: f64 = 14.0;
const GAP: f64 = 10.0;
/// One for each of [`SERVERS`].
const COLOURS: [&str; 5] = ["#4c72b0", "#55a868", "#937860", "#c44e52", "#dd8452"];
/// Panels of curves in a line.
const PANELS: usize = 3;
const PANEL_WIDTH: f64 = WIDTH / PANELS as f64;
const PANEL_HEIGHT: f64 = 200.0;

/// A bar for all rows that have a cost.
pub(crate) fn bars(rows: &[Row]) -> String {
    let rows: Vec<(&Row, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, row.cost?.median)))
        .filter(|(_, cost)| *cost > 0.0)
        .collect();
    let low = rows
        .iter()
        .map(|(_, cost)| *cost)
        .fold(f64::MAX, f64::min)
        .log10()
        .floor();
    let high = rows
        .iter()
        .map(|(_, cost)| *cost)
        .fold(f64::MIN, f64::max)
        .log10()
        .ceil();
    let length = |cost: f64| (cost.log10() - low) / (high - low).max(1.0) * (WIDTH - LABELS - 80.0);
    let mut bars = String::new();
    let mut y = 30.0;
    let mut last = None;
    for (row, cost) in &rows {
        let workload = (&row.workload, row.stored);
        if last.replace(workload) != Some(workload) {
            y += GAP;
        }
        let colour = colour(&row.server);
        let text = y + BAR - 3.0;
        let label = LABELS - 8.0;
        let end = LABELS + length(*cost);
        // Writing to a string does not fail.
        let _ = writeln!(
            bars,
            "<text x=\"{label}\" y=\"{text}\" text-anchor=\"end\">{} ({}), {}</text>\
             <rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{text}\">{}</text>",
            escaped(&row.workload),
            row.stored,
            escaped(&row.server),
            length(*cost).max(1.0),
            BAR - 2.0,
            end + 4.0,
            number(*cost),
        );
        y += BAR;
    }
    let title = "Cost: µs of the server's processor per operation, MB of memory, ms to start (logarithmic)";
    picture(y + 20.0, title, &bars)
}

/// A panel for each workload, with a line for each server.
pub(crate) fn curves(rows: &[Row]) -> String {
    let all = series(rows);
    let mut names: Vec<&str> = all.iter().map(|series| series.name.as_str()).collect();
    names.dedup();
    // Those of the first number of records come first, and again with each other number.
    let mut panels: Vec<&str> = Vec::new();
    for name in names {
        if !panels.contains(&name) {
            panels.push(name);
        }
    }
    let mut drawn = String::new();
    let mut x = 400.0;
    for server in SERVERS {
        if all.iter().any(|series| series.server == server) {
            let colour = colour(server);
            // Writing to a string does not fail.
            let _ = writeln!(drawn, "<text x=\"{x}\" y=\"20\" fill=\"{colour}\">{server}</text>");
            x += 20.0 + 7.0 * server.len() as f64;
        }
    }
    for (place, name) in panels.iter().enumerate() {
        let of_panel: Vec<&Series> = all.iter().filter(|series| series.name == *name).collect();
        let (column, line) = (place % PANELS, place / PANELS);
        let (left, top) = (column as f64 * PANEL_WIDTH, 30.0 + line as f64 * PANEL_HEIGHT);
        let _ = writeln!(
            drawn,
            "<g transform=\"translate({left:.0} {top:.0})\">\n{}</g>",
            panel(name, &of_panel)
        );
    }
    let height = 30.0 + panels.len().div_ceil(PANELS) as f64 * PANEL_HEIGHT;
    let title = "Cost per operation in µs of the server's processor (memory: MB)";
    picture(height, title, &drawn)
}

fn panel(name: &str, series: &[&Series]) -> String {
    let (left, right, top, bottom) = (55.0, PANEL_WIDTH - 20.0, 24.0, PANEL_HEIGHT - 34.0);
    let points = || series.iter().flat_map(|series| &series.points);
    let over = series.first().map_or("", |series| series.over);
    let places = range(points().map(|(place, _)| *place as f64));
    let costs = range(points().map(|(_, cost)| cost.median));
    let x = |place: usize| left + ((place as f64).log10() - places.0) / (places.1 - places.0) * (right - left);
    let y = |cost: f64| bottom - (cost.max(1e-3).log10() - costs.0) / (costs.1 - costs.0) * (bottom - top);
    let mut drawn = format!(
        "<text x=\"{left}\" y=\"14\" font-weight=\"bold\">{}</text>\n",
        escaped(name)
    );
    for decade in costs.0 as i32..=costs.1 as i32 {
        let cost = 10_f64.powi(decade);
        let (at, label) = (y(cost), left - 4.0);
        // Writing to a string does not fail.
        let _ = writeln!(
            drawn,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#dddddd\"/>\
             <text x=\"{label}\" y=\"{:.1}\" text-anchor=\"end\">{cost}</text>",
            at + 4.0
        );
    }
    let mut labels: Vec<usize> = points().map(|(place, _)| *place).collect();
    labels.sort_unstable();
    labels.dedup();
    for place in labels {
        let _ = writeln!(
            drawn,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(place),
            bottom + 14.0,
            whole(place)
        );
    }
    let _ = writeln!(
        drawn,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777777\">{over}</text>",
        f64::midpoint(left, right),
        bottom + 27.0
    );
    for one in series {
        let colour = colour(&one.server);
        let line: Vec<String> = one
            .points
            .iter()
            .map(|(place, cost)| format!("{:.1},{:.1}", x(*place), y(cost.median)))
            .collect();
        let _ = writeln!(
            drawn,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (place, cost) in &one.points {
            let _ = writeln!(
                drawn,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}, {place} {over}: {}</title></circle>",
                x(*place),
                y(cost.median),
                escaped(&one.server),
                number(cost.median)
            );
        }
    }
    drawn
}

/// The whole decades, as exponents of ten, that all of these lie in; at least one decade.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, 1e-3_f64), |(low, high), value| {
        (low.min(value.max(1e-3)), high.max(value))
    });
    let low = low.min(high).log10().floor();
    (low, high.log10().ceil().max(low + 1.0))
}

fn colour(server: &str) -> &'static str {
    let place = SERVERS.iter().position(|known| *known == server);
    place.and_then(|place| COLOURS.get(place)).copied().unwrap_or("#000000")
}

fn picture(height: f64, title: &str, drawn: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" \
         y=\"20\">{title}</text>\n{drawn}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
