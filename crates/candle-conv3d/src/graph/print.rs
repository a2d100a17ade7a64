//! A graph for people: a table, and Graphviz.

use super::{Graph, Node, NodeId, Operation};
use crate::geometry::Window;
use std::fmt::Write;

impl Graph {
    /// One line for each node: name, operation, shape of the result, parameters, multiply-adds.
    pub fn table(&self) -> String {
        let rows: Vec<[String; 5]> = self.nodes.iter().map(row).collect();
        let heads = ["layer", "operation", "(c, t, h, w)", "parameters", "multiply-adds"].map(str::to_owned);
        let width = |column: usize| {
            let cells = rows.iter().chain([&heads]).map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        let mut table = String::new();
        for [name, operation, shape, parameters, multiply_adds] in [&heads].into_iter().chain(&rows) {
            let [w0, w1, w2, w3, w4] = widths;
            let line = format!("{name:w0$}  {operation:w1$}  {shape:>w2$}  {parameters:>w3$}  {multiply_adds:>w4$}");
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }

    /// The graph in Graphviz's language: `dot -Tsvg` draws it.
    pub fn graphviz(&self) -> String {
        let mut text = String::from("digraph network {\n    node [shape=box, fontname=\"sans-serif\"];\n");
        for (NodeId(index), node) in self.nodes() {
            let shape = join(node.shape.dims(), "x");
            let title = if node.is_named() { format!("{}\\n", escape(&node.name)) } else { String::new() };
            let shade = match node.operation {
                Operation::Input => ", style=filled, fillcolor=\"#e0e0e0\"",
                Operation::Conv(_) | Operation::Linear(_) => ", style=filled, fillcolor=\"#cfe2f3\"",
                _ => "",
            };
            let _ = writeln!(text, "    n{index} [label=\"{title}{}\\n{shape}\"{shade}];", describe(node));
            for input in &node.inputs {
                let _ = writeln!(text, "    n{} -> n{index};", input.0);
            }
        }
        for (number, output) in self.outputs.iter().enumerate() {
            let _ = writeln!(text, "    o{number} [label=\"output {number}\", shape=ellipse];");
            let _ = writeln!(text, "    n{} -> o{number};", output.0);
        }
        text.push_str("}\n");
        text
    }
}

impl Node {
    /// Whether its name is a layer's, not that of its kind.
    fn is_named(&self) -> bool {
        self.name != self.operation.kind()
    }
}

fn row(node: &Node) -> [String; 5] {
    let parameters: usize = node.operation.parameters().map(super::Parameter::len).sum();
    let number = |value: u64| if value == 0 { String::new() } else { grouped(value) };
    let name = if node.is_named() { node.name.clone() } else { String::new() };
    [name, describe(node), join(node.shape.dims(), " x "), number(parameters as u64), number(node.multiply_adds())]
}

/// The operation with what it is set to, such as `conv 3x3x3 / 2, 32 groups + residual + relu`.
fn describe(node: &Node) -> String {
    let mut text = node.operation.kind().to_owned();
    match &node.operation {
        Operation::Conv(conv) => {
            text.push_str(&describe_window(&conv.window));
            if conv.groups > 1 {
                let _ = write!(text, ", {} groups", conv.groups);
            }
            if conv.bias.is_some() {
                text.push_str(" + bias");
            }
            match conv.residual {
                Some([1, 1, 1]) => text.push_str(" + residual"),
                Some(stride) => {
                    let _ = write!(text, " + residual / {}", join(stride, "x"));
                }
                None => {}
            }
            if let Some(function) = conv.nonlinearity {
                let _ = write!(text, " + {}", function.name());
            }
        }
        Operation::MaxPool(window) | Operation::AvgPool(super::AvgPool { window, .. }) => {
            text.push_str(&describe_window(window));
        }
        Operation::StridedPick(stride) => {
            let _ = write!(text, " / {}", join(*stride, "x"));
        }
        Operation::Linear(super::Linear { nonlinearity: Some(function), .. })
        | Operation::Scale(super::Scale { nonlinearity: Some(function), .. }) => {
            let _ = write!(text, " + {}", function.name());
        }
        Operation::Dropout(probability) => {
            let _ = write!(text, " {probability}");
        }
        _ => {}
    }
    text
}

/// Kernel, stride unless it is 1, padding unless it keeps the size or there is none.
fn describe_window(window: &Window) -> String {
    let Window { kernel, stride, padding, padding_after } = *window;
    let mut text = format!(" {}", join(kernel, "x"));
    if stride != [1; 3] {
        let _ = write!(text, " / {}", join(stride, "x"));
    }
    let keeps_size = padding == kernel.map(|k| k / 2) && padding_after == padding;
    if padding != padding_after {
        let _ = write!(text, ", padding {} and {}", join(padding, "x"), join(padding_after, "x"));
    } else if !keeps_size {
        let _ = write!(text, ", padding {}", join(padding, "x"));
    }
    text
}

fn join<const N: usize>(dims: [usize; N], separator: &str) -> String {
    dims.map(|dim| dim.to_string()).join(separator)
}

/// With thin gaps between thousands: 1 234 567.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use crate::graph::{ConvConfig, Graph, PoolConfig, passes};

    fn network() -> Graph {
        let mut graph = Graph::new([3, 8, 32, 32]).unwrap();
        let config = ConvConfig { stride: [1, 2, 2], padding: [1, 3, 3], ..ConvConfig::new(16, [3, 7, 7]) };
        let x = graph.conv("conv1", graph.input(), &config).unwrap();
        let x = graph.batch_norm("bn1", x, 1e-5).unwrap();
        let x = graph.relu(x).unwrap();
        let pool = PoolConfig { padding: [0, 1, 1], ..PoolConfig::new([1, 3, 3], [1, 2, 2]) };
        let x = graph.max_pool(x, &pool).unwrap();
        let x = graph.global_avg_pool(x).unwrap();
        let x = graph.linear("fc", x, 1000).unwrap();
        graph.set_outputs(&[x]).unwrap();
        graph
    }

    #[test]
    fn the_table_has_a_line_for_each_node() {
        let expected = "\
layer  operation                           (c, t, h, w)  parameters  multiply-adds
       input                             3 x 8 x 32 x 32
conv1  conv 3x7x7 / 1x2x2               16 x 8 x 16 x 16       7 056     14 450 688
bn1    batch_norm                       16 x 8 x 16 x 16          64
       relu                             16 x 8 x 16 x 16
       max_pool 1x3x3 / 1x2x2             16 x 8 x 8 x 8
       global_avg_pool                    16 x 1 x 1 x 1
fc     linear                           1000 x 1 x 1 x 1      17 000         16 000
";
        let squeeze = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeeze(&network().table()), squeeze(expected));
        let prepared = passes::prepare(network()).table();
        assert!(prepared.contains("conv 3x7x7 / 1x2x2 + bias + relu"), "{prepared}");
    }

    #[test]
    fn graphviz_names_every_node_and_edge() {
        let text = network().graphviz();
        assert!(text.starts_with("digraph network {") && text.ends_with("}\n"), "{text}");
        assert!(text.contains("n1 [label=\"conv1\\nconv 3x7x7 / 1x2x2\\n16x8x16x16\""), "{text}");
        assert_eq!(text.matches(" -> ").count(), 7, "six edges and one output");
    }
}
