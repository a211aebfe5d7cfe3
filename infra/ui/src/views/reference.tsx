/** The API reference. */
export function Reference() {
  return <h1>API reference</h1>;
}
