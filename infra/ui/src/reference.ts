/** The API reference, a page of its own: Swagger UI with the OpenAPI document of this service. */
import "swagger-ui-dist/swagger-ui.css";
import "./reference.css";
import SwaggerUI, { type System } from "swagger-ui-dist/swagger-ui-es-bundle.js";
import { token } from "./session";

const dark = matchMedia("(prefers-color-scheme: dark)");
const choose = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", choose);
choose();

/** Its parts in one landmark and below headings in order; there is one server, so none is chosen. */
const layout = ({ React: { createElement: make } }: System) => ({
  components: {
    Reference: ({ getComponent, specSelectors }: System) => {
      const parts = ["InfoContainer", "AuthorizeBtnContainer", "FilterContainer", "operations", "Models"];
      const shown = specSelectors.specStr() ? parts : ["errors"];
      const made = shown.map((name) => make("div", { className: "wrapper", key: name }, make(getComponent(name, true))));
      made.splice(3, 0, make("h2", { className: "wrapper", key: "h2" }, "Operations"));
      return make("main", { className: "swagger-ui" }, make(getComponent("SvgAssets")), made);
    },
  },
});

const reference = SwaggerUI({
  url: "../v1/openapi.json",
  dom_id: "#reference",
  plugins: [layout],
  layout: "Reference",
  filter: true,
  validatorUrl: null, // the document must not be sent to a third party
  // who has signed in can try an operation
  onComplete: () => token.value && reference.preauthorizeApiKey("token", `token ${token.value}`),
});
