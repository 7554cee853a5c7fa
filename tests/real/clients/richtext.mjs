// What the reference implementation makes of records: node richtext.mjs < records.json prints for each
//   {"facets": [[byteStart, byteEnd, kind, value], …], "refused": null | "why", "graphemes": 12}
// Facets are those that @atproto/api detects in the text; a mention has its handle for a DID. Refused is what
// the PDS would not store. Graphemes are counted in both ways that servers count them; the larger one is told.
import { createRequire } from 'node:module'
import { text } from 'node:stream/consumers'
import { RichText } from '@atproto/api'
import { countGraphemes } from 'unicode-segmenter/grapheme'

const require = createRequire(import.meta.url)
const { app } = require('../node_modules/@atproto/pds/dist/lexicons/index.js')
const segmenter = new Intl.Segmenter()

function detected(record) {
  const rich = new RichText({ text: record.text })
  rich.detectFacetsWithoutResolution()
  return (rich.facets ?? []).map(({ index, features: [{ $type, uri, did, tag }] }) => [
    index.byteStart,
    index.byteEnd,
    $type.split('#')[1],
    uri ?? did ?? tag,
  ])
}

function refusal(record) {
  const result = app.bsky.feed.post.main.safeValidate(record)
  return result.success ? null : result.reason.message
}

const records = JSON.parse(await text(process.stdin))
const answers = records.map((record) => ({
  facets: detected(record),
  refused: refusal(record),
  graphemes: Math.max([...segmenter.segment(record.text)].length, countGraphemes(record.text)),
}))
process.stdout.write(JSON.stringify(answers))
