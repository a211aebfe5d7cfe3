declare module "*.css";

/** What the reference uses of Swagger UI. */
declare module "swagger-ui-dist/swagger-ui-es-bundle.js" {
  export interface System {
    React: { createElement(kind: unknown, properties?: object | null, ...children: unknown[]): unknown };
    getComponent(name: string, isContainer?: boolean): unknown;
    specSelectors: { specStr(): string };
    preauthorizeApiKey(scheme: string, value: string): void;
  }
  export default function SwaggerUI(options: object): System;
}
