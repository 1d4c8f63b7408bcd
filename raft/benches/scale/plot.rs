//! The table as a picture: both axes logarithmic.

use crate::loss::Row;
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Edges of the field: left, right, top, bottom.
const FIELD: (f64, f64, f64, f64) = (80.0, 620.0, 40.0, 340.0);
/// Decades that the axes show: 20 to 1 260 devices, 0.0001 to 100 percent.
const X_DECADES: (f64, f64) = (1.3, 3.1);
const Y_DECADES: (f64, f64) = (-4.0, 2.0);

/// The picture.
pub fn svg(rows: &[Row]) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>"
    );
    text(&mut svg, (WIDTH / 2.0, 22.0), "middle", "Three random devices fail at once: probability of data loss");
    text(&mut svg, (WIDTH / 2.0, HEIGHT - 18.0), "middle", "devices in the cluster");
    axes(&mut svg, rows);
    let (above, below) = ((10.0, -8.0, "start"), (-10.0, 18.0, "end"));
    line(&mut svg, rows, "#c0392b", ("each lane on three random devices", above), |row| row.random.exact);
    line(&mut svg, rows, "#1f6fb2", ("copysets, scatter width 12", below), |row| row.copysets.exact);
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String, rows: &[Row]) {
    let (left, right, top, bottom) = FIELD;
    for decade in (Y_DECADES.0 as i32)..=(Y_DECADES.1 as i32) {
        let y = y_of(10f64.powi(decade) / 100.0);
        let _ = writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
        let label = format!("{} %", 10f64.powi(decade));
        text(svg, (left - 8.0, y + 4.0), "end", &label);
    }
    for row in rows {
        let x = x_of(row.devices);
        let _ = writeln!(svg, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/>");
        text(svg, (x, bottom + 18.0), "middle", &row.devices.to_string());
    }
    let _ = writeln!(svg, "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#333\"/>");
}

/// A name, and where it stands beside the second point: right and down of it, and what of the text stands there.
type Name = (&'static str, (f64, f64, &'static str));

fn line(svg: &mut String, rows: &[Row], colour: &str, (name, place): Name, share: impl Fn(&Row) -> f64) {
    let points = rows.iter().map(|row| (x_of(row.devices), y_of(share(row)))).collect::<Vec<_>>();
    let path = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    for (x, y) in &points {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
    }
    if let Some((x, y)) = points.get(1) {
        let _ = writeln!(svg, "<g fill=\"{colour}\">");
        let (right, down, anchor) = place;
        text(svg, (x + right, y + down), anchor, name);
        svg.push_str("</g>\n");
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

fn x_of(devices: u64) -> f64 {
    let (left, right, ..) = FIELD;
    left + ((devices as f64).log10() - X_DECADES.0) / (X_DECADES.1 - X_DECADES.0) * (right - left)
}

fn y_of(share: f64) -> f64 {
    let (_, _, top, bottom) = FIELD;
    bottom - ((share * 100.0).log10() - Y_DECADES.0) / (Y_DECADES.1 - Y_DECADES.0) * (bottom - top)
}
