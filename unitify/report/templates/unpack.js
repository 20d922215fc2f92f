// Large data is compressed in the page, in base64, and unpacked when it is needed.

async function unpacked(id) {
  const packed = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

let plotly = null;
let loadedPlotly = null;

// The plotting library, once: its text becomes a script of this page.
function withPlotly() {
  plotly ??= unpacked("packed-plotly").then((text) => {
    const script = element("script");
    script.nonce = document.querySelector("script[nonce]").nonce;
    script.textContent = text;
    document.head.append(script);
    loadedPlotly = window.Plotly;
    return loadedPlotly;
  });
  return plotly;
}
