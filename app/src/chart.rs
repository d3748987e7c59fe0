//! Plots, as SVG.

use std::ops::Range;

use anyhow::Result;
use plotters::chart::SeriesLabelPosition;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::prelude::{
    ChartBuilder, ChartContext, Color as _, IntoDrawingArea as _, LineSeries, SVGBackend,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{BLACK, FontTransform, IntoFont as _, IntoTextStyle as _, RGBColor, WHITE};

/// Colours that people with any kind of colour vision tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];
const FONT: &str = "sans-serif";

/// What stands above a plot and along its axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Titles<'a> {
    pub(crate) plot: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
}

/// Values under a name.
pub(crate) type Series<'a, T> = (&'a str, Vec<T>);

type Plane = plotters::coord::cartesian::Cartesian2d<
    plotters::coord::types::RangedCoordf64,
    plotters::coord::types::RangedCoordf64,
>;

/// Lines through points, and a level that they should stay under.
pub(crate) fn lines(
    titles: Titles<'_>,
    series: &[Series<'_, (f64, f64)>],
    level: (&str, f64),
) -> Result<String> {
    let points = || series.iter().flat_map(|(_, points)| points);
    let most = points().map(|p| p.1).fold(level.1, f64::max);
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    let (first, last) = points().fold(ends, |ends, p| (ends.0.min(p.0), ends.1.max(p.0)));
    // One point still needs an axis of some length.
    let range = if last > first { first..last } else { first - 0.5..first + 0.5 };
    let level = (level.0, vec![(range.start, level.1), (range.end, level.1)]);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (900, 500)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(titles.plot, (FONT, 20))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(range, axis(most))?;
    chart.configure_mesh().max_light_lines(0).x_desc(titles.x).y_desc(titles.y).draw()?;
    for ((name, points), colour) in series.iter().chain([&level]).zip(COLOURS) {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(line)?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
    area.present()?;
    drop((chart, area));
    Ok(svg)
}

/// Stacked bars: for each label one value of each part.
pub(crate) fn bars(titles: Titles<'_>, labels: &[String], parts: &[Series<'_, f64>]) -> Result<String> {
    let height = |bar: usize| parts.iter().filter_map(|(_, values)| values.get(bar)).sum::<f64>();
    let most = (0..labels.len()).map(height).fold(0.0, f64::max);
    let width = u32::try_from(labels.len()).unwrap_or(u32::MAX).saturating_mul(26).clamp(500, 4000);
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (width, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(titles.plot, (FONT, 20))
        .margin(15)
        .x_label_area_size(170)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.7..labels.len() as f64 - 0.3, axis(most))?;
    chart.configure_mesh().max_light_lines(0).disable_x_mesh().x_labels(0).y_desc(titles.y).draw()?;
    let mut base = vec![0.0; labels.len()];
    for ((name, values), colour) in parts.iter().zip(COLOURS) {
        let boxes = values.iter().zip(&mut base).enumerate().map(|(bar, (value, base))| {
            let (x, bottom) = (bar as f64, *base);
            *base += value;
            Rectangle::new([(x - 0.35, bottom), (x + 0.35, *base)], colour.filled())
        });
        chart
            .draw_series(boxes)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
    let upright = (FONT, 13).into_font().transform(FontTransform::Rotate90);
    let style = upright.into_text_style(&area).pos(Pos::new(HPos::Left, VPos::Center));
    for (bar, label) in labels.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(bar as f64, 0.0));
        area.draw(&Text::new(label.as_str(), (x, y + 8), &style))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)?;
    area.present()?;
    drop((chart, area));
    Ok(svg)
}

/// From 0 to a little above the highest point.
fn axis(most: f64) -> Range<f64> {
    0.0..(most * 1.08).max(f64::MIN_POSITIVE)
}

fn legend<'a, 'b: 'a>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Plane>,
    position: SeriesLabelPosition,
) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font((FONT, 14))
        .draw()?;
    Ok(())
}
