"""The frame of the report: its style sheet and its few lines of script. Nothing is fetched from anywhere."""

from worldloom.pipeline.markup import Markup, element

# Threads over and under each other, in the colours of the page.
LOGO = Markup(
    '<svg class="logo" viewBox="0 0 28 28" width="28" height="28" aria-hidden="true" fill="none" stroke-width="3.4" stroke-linecap="round">'
    '<path class="weft" d="M2 7h24M2 14h24M2 21h24"/><path class="gap" d="M7 3v8M7 18v7M14 10v8M21 3v8M21 18v7"/>'
    '<path class="warp" d="M7 2v9M7 18v8M14 2v1.5M14 10.5v7M14 24.5v1.5M21 2v9M21 18v8"/></svg>'
)

STYLE = """
:root{color-scheme:light dark;
--paper:#faf9f6;--card:#fff;--ink:#1e1d1a;--soft:#66625a;--line:#e5e1d8;--faint:#f2efe8;--accent:#2458b3;--good:#187145;--bad:#b23325;--busy:#2458b3;
--s0:#2a66c8;--s1:#d0660c;--s2:#178259;--s3:#8a4bc9;--s4:#c2345f;--s5:#0b8290}
@media(prefers-color-scheme:dark){:root{
--paper:#141517;--card:#1c1e21;--ink:#ecebe7;--soft:#a5a199;--line:#34373b;--faint:#26292d;--accent:#8ab6ff;--good:#56c892;--bad:#ff9182;--busy:#8ab6ff;
--s0:#6fa6ff;--s1:#f0974a;--s2:#4cc699;--s3:#bd8df5;--s4:#f47b9f;--s5:#4fc1cf}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}
.wrap{max-width:1120px;margin:0 auto;padding:0 24px 72px}
a{color:var(--accent)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:4px}
.skip{position:absolute;left:-9999px}.skip:focus{position:static}
h1{font-size:40px;line-height:1.1;letter-spacing:-.022em;margin:0;overflow-wrap:anywhere}
h2{font-size:23px;line-height:1.25;letter-spacing:-.012em;margin:0;overflow-wrap:anywhere}
h3{font-size:15px;font-weight:600;margin:28px 0 10px}
h2.lone{margin:52px 0 16px}
p{margin:10px 0;max-width:72ch}
.soft,.note,.kind{color:var(--soft)}
.note{font-style:italic}
header{padding:40px 0 4px}
.brand{display:flex;align-items:center;gap:9px;font-weight:600;font-size:15px;color:var(--soft);margin-bottom:22px}
.logo .weft{stroke:var(--s1)}.logo .warp{stroke:var(--s0)}.logo .gap{stroke:var(--paper);stroke-width:7;stroke-linecap:butt}
.lead{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center;color:var(--soft);margin:12px 0 0}
.state{display:inline-flex;align-items:center;gap:7px;font-size:14px;font-weight:600;white-space:nowrap}
.state::before{content:"";width:9px;height:9px;border-radius:50%;background:currentColor;flex:none}
.state.good{color:var(--good)}.state.bad{color:var(--bad)}.state.busy{color:var(--busy)}.state.idle{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:1px;background:var(--line);border:1px solid var(--line);border-radius:12px;overflow:hidden;margin:30px 0 0;padding:0;list-style:none}
.tiles li{background:var(--card);padding:16px 18px 15px;display:flex;flex-direction:column}
.tiles b{font-size:31px;line-height:1.15;font-weight:650;letter-spacing:-.02em;white-space:nowrap}
.tiles b small{font-size:17px;font-weight:500;color:var(--soft);letter-spacing:0;margin-left:3px}
.tiles span{font-size:13.5px;line-height:1.35;color:var(--soft);margin-top:5px}
.hero{margin:34px 0 0}
.stage,.panel{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:24px 28px 26px;margin:18px 0 0;scroll-margin-top:16px}
.panel{padding:20px 24px}
.head{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline}
.head .kind{font-size:14.5px}
.head .state{margin-left:auto}
.facts{font-size:14px;color:var(--soft);margin:4px 0 0;max-width:none;overflow-wrap:anywhere}
.stage>h3:first-of-type{margin-top:20px}
details{margin-top:20px;border-top:1px solid var(--line);padding-top:12px}
details+details{margin-top:12px}
summary{cursor:pointer;font-size:14.5px;color:var(--soft);width:fit-content}
.scroll{overflow-x:auto;margin:10px 0;max-width:100%}
table{border-collapse:collapse;font-size:14.5px;min-width:min(100%,340px)}
th{text-align:left;font-weight:600;color:var(--soft);font-size:13.5px}
th,td{padding:6px 22px 6px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
tbody tr:last-child td{border-bottom:0}
.number{text-align:right;white-space:nowrap}
td.value{white-space:nowrap;text-align:right}
code{font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
figure{margin:0}
.picture{margin:20px 0}
.picture img{max-width:100%;height:auto;border-radius:6px;display:block}
.picture img.pixels{width:min(100%,384px)}
figcaption{font-size:13.5px;line-height:1.4;color:var(--soft)}
img.pixels{image-rendering:pixelated}
.tally{font-weight:400;color:var(--soft);margin-left:8px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(116px,1fr));gap:18px 14px;margin:12px 0 4px}
.gallery:has(.pair){grid-template-columns:repeat(auto-fill,minmax(196px,1fr))}
.gallery.large{grid-template-columns:repeat(auto-fill,minmax(118px,1fr))}
.item figcaption{margin-top:7px;color:var(--ink);overflow-wrap:anywhere}
.item small{display:block;font-size:12.5px;color:var(--soft);margin-top:2px}
.pictures{display:flex;gap:4px}
.pictures img{width:100%;min-width:0;flex:1;height:auto;border-radius:6px;display:block}
.verdict{display:flex;align-items:center;gap:5px;font-size:12.5px;font-weight:600}
.verdict i{font-style:normal}
.verdict.right{color:var(--good)}.verdict.wrong{color:var(--bad)}
.missing{display:flex;width:100%;aspect-ratio:1;align-items:center;justify-content:center;text-align:center;font-size:12px;color:var(--soft);background:var(--faint);border-radius:6px;padding:6px}
.chart{margin:26px 0 0;max-width:860px}
.chart>figcaption{font-size:15px;font-weight:600;color:var(--ink);margin-bottom:8px}
.legend{list-style:none;margin:0 0 8px;padding:0;display:flex;flex-wrap:wrap;gap:3px 18px;font-size:13.5px;color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;margin-left:3px}
.legend i{display:inline-block;width:16px;height:3px;border-radius:2px;background:currentColor;vertical-align:middle;margin-right:7px}
.legend .s0 i{color:var(--s0)}.legend .s1 i{color:var(--s1)}.legend .s2 i{color:var(--s2)}.legend .s3 i{color:var(--s3)}.legend .s4 i{color:var(--s4)}.legend .s5 i{color:var(--s5)}
.plot{display:grid;grid-template-columns:52px minmax(0,1fr);font-size:12.5px;color:var(--soft);position:relative}
.plot .unit{grid-column:1/-1;font-size:12.5px}.plot .unit.end{grid-column:2;text-align:right;margin-top:1px}
.area{height:210px;border-bottom:1px solid var(--soft);position:relative;grid-column:2}
.area svg{width:100%;height:100%;display:block;overflow:visible}
.side{position:relative}.side span{position:absolute;right:10px;transform:translateY(-50%);line-height:1;white-space:nowrap}
.foot{grid-column:2;position:relative;height:22px}.foot span{position:absolute;top:5px;transform:translateX(-50%);line-height:1.2;white-space:nowrap}
.plot path,.plot polyline{vector-effect:non-scaling-stroke;fill:none}
.grid{stroke:var(--line)}
.plot polyline{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.plot polyline.dot{stroke-width:7}
.plot polygon{opacity:.16;stroke:none}
g.s0{stroke:var(--s0);fill:var(--s0)}g.s1{stroke:var(--s1);fill:var(--s1)}g.s2{stroke:var(--s2);fill:var(--s2)}g.s3{stroke:var(--s3);fill:var(--s3)}g.s4{stroke:var(--s4);fill:var(--s4)}g.s5{stroke:var(--s5);fill:var(--s5)}
.plot path.column{fill:var(--s0);stroke:none}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);pointer-events:none}
.tip{position:absolute;top:6px;background:var(--card);border:1px solid var(--line);border-radius:7px;padding:6px 10px;font-size:12.5px;line-height:1.45;white-space:nowrap;pointer-events:none;color:var(--ink);box-shadow:0 3px 12px rgb(0 0 0/.12);z-index:2}
.rows{list-style:none;margin:0;padding:0;max-width:640px}
.rows li{display:grid;grid-template-columns:minmax(90px,30%) 1fr 64px;gap:12px;align-items:center;padding:3px 0;font-size:14px}
.rows .label{overflow-wrap:anywhere;line-height:1.3}
.rows .track{background:var(--faint);border-radius:4px;height:12px;overflow:hidden}.rows i{display:block;height:100%;background:var(--s0);border-radius:4px}
.rows b{font-weight:600;text-align:right}
.graph{display:block;height:auto;max-width:none}.graph.upright{display:none}
.graph .edge{fill:none;stroke:var(--soft);stroke-width:1.4;opacity:.55}
.graph rect{fill:var(--paper);stroke:var(--line);stroke-width:1.2}
.graph a{cursor:pointer;text-decoration:none}
.graph a:hover rect,.graph a:focus-visible rect{stroke:var(--accent);stroke-width:2}.graph a:focus-visible{outline:none}
.graph text{font-size:12px;fill:var(--soft)}.graph .name{font-size:14px;font-weight:600;fill:var(--ink)}
.good circle{fill:var(--good)}.bad circle{fill:var(--bad)}.busy circle{fill:var(--busy)}.idle circle{fill:none;stroke:var(--soft);stroke-width:1.4}
.times{display:grid;grid-template-columns:auto 1fr auto;gap:5px 14px;align-items:center;font-size:13.5px;margin-top:22px;border-top:1px solid var(--line);padding-top:16px}
.times .track{height:10px;position:relative}.times i{position:absolute;top:0;height:100%;min-width:3px;border-radius:4px;background:var(--s0)}
.times b{font-weight:500;text-align:right;color:var(--soft)}
footer{color:var(--soft);font-size:13.5px;margin-top:44px;border-top:1px solid var(--line);padding-top:16px}
@media(max-width:640px){
.wrap{padding:0 14px 48px}header{padding-top:24px}h1{font-size:31px}h2{font-size:20px}
.tiles{grid-template-columns:1fr 1fr;margin-top:22px}.tiles li{padding:13px 14px 12px}.tiles b{font-size:26px}
.stage,.panel{padding:18px 16px 20px;margin-top:14px}
.head .state{margin-left:0;flex-basis:100%}
.gallery,.gallery.large{grid-template-columns:repeat(auto-fill,minmax(92px,1fr));gap:14px 10px}.gallery:has(.pair){grid-template-columns:repeat(auto-fill,minmax(150px,1fr))}
.plot{grid-template-columns:44px minmax(0,1fr)}.area{height:180px}
.graph.lying{display:none}.graph.upright{display:block;margin:0 auto}
.rows li{grid-template-columns:minmax(80px,34%) 1fr 52px;gap:9px}
.tall{display:none}}
@media print{.stage,.panel,.item{break-inside:avoid}body{background:#fff}}
"""

# A line and the values under the pointer; without script the page loses only this.
SCRIPT = """
document.querySelectorAll('[data-readout]').forEach(plot=>{
const data=JSON.parse(plot.dataset.readout),area=plot.querySelector('.area'),lines=Object.entries(data.lines);
const cursor=document.createElement('div'),tip=document.createElement('div');cursor.className='cursor';tip.className='tip';
const shown=v=>Math.abs(v)>=1000?Math.round(v).toLocaleString():+v.toPrecision(4)+'';
area.addEventListener('pointermove',event=>{
const box=area.getBoundingClientRect(),at=(event.clientX-box.left)/box.width*1000;
const nearest=lines.map(([name,points])=>[name,points.reduce((a,b)=>Math.abs(b[2]-at)<Math.abs(a[2]-at)?b:a)]);
const first=nearest.reduce((a,b)=>Math.abs(b[1][2]-at)<Math.abs(a[1][2]-at)?b:a)[1],share=first[2]/1000;
cursor.style.left=share*100+'%';tip.replaceChildren(...[[data.x,first[0]],...nearest.map(([n,p])=>[n,p[1]])].map(([n,v])=>{
const row=document.createElement('div');row.textContent=n+'  '+shown(v);return row}));
tip.style.left=share<.6?'calc('+share*100+'% + 10px)':'';tip.style.right=share<.6?'':'calc('+(100-share*100)+'% + 10px)';
area.append(cursor,tip)});
area.addEventListener('pointerleave',()=>{cursor.remove();tip.remove()})});
"""


def page(title: str, body: Markup) -> str:
    """A whole HTML document."""
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, title),
        element("style", {}, Markup(STYLE)),
    )
    rest = element("body", {}, body, element("script", {}, Markup(SCRIPT)))
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, rest)}\n"
